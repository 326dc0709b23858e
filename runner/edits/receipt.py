"""Receipts: what each intervention did in a run, measured where it acted.

How it is measured is `recorder`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, TypeVar

from pydantic import JsonValue

from subvene.interventions.positions import plain_positions
from subvene.runner.edits.gate_receipt import GateReceipt, GateRecord, gates_joined
from subvene.runner.edits.source_receipt import SourceReceipt, SourceRecord, joined
from subvene.specs import Positions, SubveneError

if TYPE_CHECKING:
    import pandas

_Number = TypeVar("_Number", int, float)

ROLES = ("prompt", "cursor", "response")


class NotSteeredError(SubveneError):
    """An intervention was declared with a strength, and the run was not steered by it."""


class ReceiptRecord(TypedDict):
    """An `InterventionReceipt` as `Receipt.to_dict` writes it, as far as it is told in words."""

    name: str
    kind: str
    sites: list[str]
    strengths: list[float]
    edited: dict[str, int]
    changed: int | None
    mean_relative: float | None
    max_relative: float | None
    first: int | None
    last: int | None
    rows: int
    rows_edited: int
    mean_strength: NotRequired[float | None]
    source: NotRequired[SourceRecord]
    gate: NotRequired[GateRecord]


@dataclass(frozen=True)
class InterventionReceipt:
    """What one declared intervention did in one run.

    Attributes:
        name: the intervention's name in its spec (or its kind and place in the file).
        kind: its kind.
        sites: where it acted, as `site[layer]`.
        positions: its position rule.
        strengths: the strengths in force, one, or one per row of the batch.
        reached: whether every module that it edits ran in this run.
        calls: forward calls in which it ran, over all its sites; None where an engine did not count them.
        edited: tokens edited at each site, by role (`prompt` without the cursor, `cursor`, `response`); a
            token that a run passes twice (no cache, rejected drafts) counts once, padding never.
        cached: tokens that it had edited in the cache that the run goes on from; not counted elsewhere.
        changed: tokens whose activation differs after the edit, at the site where fewest do; None where an
            engine measured all that acts there together.
        mean_relative: mean of ‖Δ‖/‖h‖ over the edited tokens and sites; None likewise.
        max_relative: its maximum; None where an engine did not measure it.
        first: smallest 0-based position (padding excluded) edited in any row; None if no token was.
        last: largest such position.
        rows: rows in the batch.
        rows_edited: rows in which at least one token was edited.
        mean_strength: mean of the strength really used, over edited tokens and heads, where the intervention
            adapts it; None where it is `strengths` as they stand, or an engine did not measure it.
        expects_change: whether a run without any changed token counts as not steered.
        source: what it read of another run; None for one that reads none.
        gate: what its gate decided; None for one without.
    """

    name: str
    kind: str
    sites: tuple[str, ...]
    positions: Positions
    strengths: tuple[float, ...]
    reached: bool
    calls: int | None
    edited: dict[str, int]
    cached: int
    changed: int | None
    mean_relative: float | None
    max_relative: float | None
    first: int | None
    last: int | None
    rows: int
    rows_edited: int
    mean_strength: float | None
    expects_change: bool
    source: SourceReceipt | None = None
    gate: GateReceipt | None = None

    @property
    def is_off(self) -> bool:
        """Whether every strength was 0, so that nothing had to happen."""
        return not any(self.strengths)

    @property
    def tokens(self) -> int:
        """Tokens edited at each site, all roles together."""
        return sum(self.edited.values())

    def problem(self) -> str | None:
        """Why this run was not steered by the intervention; None if it was, or did not have to be."""
        if self.is_off:
            return None
        what = f"{self.name!r} ({self.kind} at {', '.join(self.sites)}, positions {_words(self.positions)})"
        if self.cached and not self.tokens:
            return None
        if not self.reached:
            return f"{what} edited no token: its module never ran in this run"
        if self.gate is not None and self.gate.tokens_asked:
            if (shut := self.gate.problem()) is not None:
                return f"{what}: {shut}"
            if not self.gate.tokens_opened:
                return None  # it was asked, and stayed closed
        if self.tokens == 0:
            return f"{what} edited no token: no position of this run matches the rule"
        if self.source is not None and (unfed := self.source.problem()) is not None:
            return f"{what}: {unfed}"
        if self.changed == 0 and self.expects_change:
            return (
                f"{what} ran on {self.tokens} tokens and changed no activation: its tensor is zero, "
                "or the edit is too small for the model's dtype"
            )
        return None


@dataclass(frozen=True)
class Receipt:
    """The receipts of a run, one per declared intervention in the file's order."""

    interventions: tuple[InterventionReceipt, ...]

    def __getitem__(self, which: int | str) -> InterventionReceipt:
        if isinstance(which, int):
            return self.interventions[which]
        for receipt in self.interventions:
            if receipt.name == which:
                return receipt
        raise KeyError(
            f"no intervention is called {which!r}; there are: {[r.name for r in self.interventions]}"
        )

    def __iter__(self) -> Any:
        return iter(self.interventions)

    def __len__(self) -> int:
        return len(self.interventions)

    def to_pandas(self) -> pandas.DataFrame:
        """A table with a row for each intervention: tokens edited by role, and mean ‖Δ‖/‖h‖ over them."""
        import pandas

        return pandas.DataFrame([_line(one) for one in self.interventions])

    def __str__(self) -> str:
        return str(self.to_pandas().to_string(index=False))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return str(self.to_pandas().to_html(index=False))

    def check(self) -> None:
        """Raise `NotSteeredError` if an intervention with a strength did not act."""
        check_together([self])

    def to_dict(self) -> list[dict[str, JsonValue]]:
        """Plain values for JSON."""
        return [_plain(receipt) for receipt in self.interventions]


def _line(receipt: InterventionReceipt) -> dict[str, object]:
    return {
        "intervention": receipt.name,
        "kind": receipt.kind,
        "at": " ".join(receipt.sites),
        "positions": _words(receipt.positions),
        "strengths": ", ".join(f"{strength:g}" for strength in dict.fromkeys(receipt.strengths)),
        **{f"{role} tokens": receipt.edited[role] for role in ROLES},
        "changed": receipt.changed,
        "mean relative change": receipt.mean_relative,
    }


def _plain(receipt: InterventionReceipt) -> dict[str, JsonValue]:
    values = asdict(receipt) | {"positions": plain_positions(receipt.positions)}
    if receipt.source is None:
        del values["source"]
    else:
        values["source"] = receipt.source.plain()
    if receipt.gate is None:
        del values["gate"]
    return values


def check_together(receipts: Sequence[Receipt]) -> None:
    """Raise `NotSteeredError` if an intervention with a strength acted in none of several runs.

    For runs that are batches of one thing: a rule may select nothing in one of them (its answers are too
    short, say) and still have steered the whole.
    """
    problems = []
    for same in zip(*receipts, strict=True):
        found = [receipt.problem() for receipt in same if not receipt.is_off]
        if found and all(found):
            problems.append(str(found[0]))
    if problems:
        raise NotSteeredError("this run was not steered as declared: " + "; ".join(problems))


def merged(receipts: Sequence[Receipt], *, same_rows: bool) -> list[Receipt]:
    """Receipts of several passes as one: what they count added up; an empty list if there were none.

    Args:
        receipts: of passes under the same strengths.
        same_rows: whether the passes had the same rows, one after the other, rather than rows of their own.
    """
    if not receipts:
        return []
    count = max if same_rows else sum
    summed = []
    for same in zip(*receipts, strict=True):
        weights = [receipt.tokens for receipt in same]
        positions = [p for receipt in same for p in (receipt.first, receipt.last) if p is not None]
        summed.append(
            replace(
                same[0],
                reached=any(receipt.reached for receipt in same),
                calls=_known([receipt.calls for receipt in same], sum),
                edited={role: sum(receipt.edited[role] for receipt in same) for role in same[0].edited},
                cached=count(receipt.cached for receipt in same),
                changed=_known([receipt.changed for receipt in same], sum),
                mean_relative=_known([receipt.mean_relative for receipt in same], partial(_mean, weights)),
                max_relative=_known([receipt.max_relative for receipt in same], max),
                first=min(positions, default=None),
                last=max(positions, default=None),
                rows=count(receipt.rows for receipt in same),
                rows_edited=count(receipt.rows_edited for receipt in same),
                mean_strength=_weighed([receipt.mean_strength for receipt in same], weights),
                source=joined([receipt.source for receipt in same]),
                gate=gates_joined([receipt.gate for receipt in same], same_rows=same_rows),
            )
        )
    return [Receipt(tuple(summed))]


def _known(values: Sequence[_Number | None], of: Callable[[list[_Number]], _Number]) -> _Number | None:
    """What all of them give together; None where one of them is not known."""
    known = [value for value in values if value is not None]
    return of(known) if len(known) == len(values) else None


def _mean(weights: Sequence[int], values: Sequence[float]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / max(sum(weights), 1)


def _weighed(values: Sequence[float | None], weights: Sequence[int]) -> float | None:
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


def _words(positions: Positions) -> str:
    if isinstance(positions, str):
        return positions
    return ", ".join(f"{key}: {value}" for key, value in positions.model_dump(mode="json").items())
