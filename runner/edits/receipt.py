"""Receipts: what each intervention did in a run, measured where it acted.

The norms are taken from the activation before and after the edit, in the model's own precision, so an edit
that rounds away in bfloat16 shows as no change. Everything stays on the device until the run is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from subvene.interventions import Tokens
from subvene.interventions.positions import plain_positions
from subvene.specs import Positions, SubveneError

ROLES = ("prompt", "cursor", "response")


class NotSteeredError(SubveneError):
    """An intervention was declared with a strength, and the run was not steered by it."""


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
        calls: forward calls in which it ran, over all its sites.
        edited: tokens edited at each site, by role (`prompt` without the cursor, `cursor`, `response`); a
            token that a run passes twice (no cache, rejected drafts) counts once, padding never.
        cached: tokens that it had edited in the cache that the run goes on from; not counted elsewhere.
        changed: tokens whose activation differs after the edit, at the site where fewest do.
        mean_relative: mean of ‖Δ‖/‖h‖ over the edited tokens and sites.
        max_relative: its maximum.
        first: smallest 0-based position (padding excluded) edited in any row; None if no token was.
        last: largest such position.
        rows: rows in the batch.
        rows_edited: rows in which at least one token was edited.
        mean_strength: mean of the strength really used, over edited tokens and heads, where the intervention
            adapts it; None where it is `strengths` as they stand.
        expects_change: whether a run without any changed token counts as not steered.
    """

    name: str
    kind: str
    sites: tuple[str, ...]
    positions: Positions
    strengths: tuple[float, ...]
    reached: bool
    calls: int
    edited: dict[str, int]
    cached: int
    changed: int
    mean_relative: float
    max_relative: float
    first: int | None
    last: int | None
    rows: int
    rows_edited: int
    mean_strength: float | None
    expects_change: bool

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
        if self.tokens == 0:
            return f"{what} edited no token: no position of this run matches the rule"
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

    def check(self) -> None:
        """Raise `NotSteeredError` if an intervention with a strength did not act."""
        check_together([self])

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain values for JSON."""
        return [asdict(r) | {"positions": plain_positions(r.positions)} for r in self.interventions]


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
        total = sum(weights)
        positions = [p for receipt in same for p in (receipt.first, receipt.last) if p is not None]
        summed.append(
            replace(
                same[0],
                reached=any(receipt.reached for receipt in same),
                calls=sum(receipt.calls for receipt in same),
                edited={role: sum(receipt.edited[role] for receipt in same) for role in same[0].edited},
                cached=count(receipt.cached for receipt in same),
                changed=sum(receipt.changed for receipt in same),
                mean_relative=sum(r.mean_relative * w for r, w in zip(same, weights, strict=True))
                / max(total, 1),
                max_relative=max(receipt.max_relative for receipt in same),
                first=min(positions, default=None),
                last=max(positions, default=None),
                rows=count(receipt.rows for receipt in same),
                rows_edited=count(receipt.rows_edited for receipt in same),
                mean_strength=_weighed([receipt.mean_strength for receipt in same], weights),
            )
        )
    return [Receipt(tuple(summed))]


def _weighed(values: Sequence[float | None], weights: Sequence[int]) -> float | None:
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


class Recorder:
    """Gathers the measurements of one run without waiting for the device.

    Args:
        strengths: key → strength in force, scalar or [rows].
        slots: how many slots of a row to expect; more are allocated as they come.

    Attributes:
        end: what came after so many slots is forgotten; None: nothing is.
    """

    def __init__(self, strengths: dict[str, torch.Tensor], slots: int) -> None:
        self.strengths = strengths
        self.calls = dict.fromkeys(strengths, 0)
        # Name → tokens that were edited in the cache already.
        self.cached: dict[str, int] = {}
        # Keys whose modules have run, whether or not there was anything to edit.
        self.reached: set[str] = set()
        self._capacity = slots
        self._norms: dict[str, torch.Tensor] = {}
        # Key → sum of the strength's factors by slot [rows, slots], and how many factors that are.
        self._factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._masks: dict[Positions, torch.Tensor] = {}
        self._index: torch.Tensor | None = None
        self._prompt: torch.Tensor | None = None
        self._last: Tokens | None = None
        self.collected: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self.end: int | None = None

    def norms(self, key: str) -> torch.Tensor | None:
        """‖h‖ and ‖Δ‖ at each slot, [2, rows, slots], 0 where not measured; None if `key` never ran."""
        return self._norms.get(key)

    @torch.no_grad()
    def record(
        self,
        key: str,
        rule: Positions,
        before: torch.Tensor,
        after: torch.Tensor,
        tokens: Tokens,
        factors: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        """Measure one edit: `before` and `after` are [batch, tokens, width].

        `factors` is what the intervention's `strength_factors` gives.
        """
        start, end = tokens.start, tokens.start + before.shape[1]
        rows = before.shape[0]
        if end > self._capacity:
            self._grow(end)
        if tokens is not self._last:
            self._last = tokens
            self._index = self._slots(self._index, rows, torch.long, tokens.index.device)
            self._index[:, start:end] = tokens.index
            self._prompt = tokens.prompt_length
            for mask in self._masks.values():
                # A slot that is passed again is judged again: the last pass is the one that counts. What an
                # earlier pass had seen beyond (rejected drafts) is no longer part of the sequence.
                mask[:, start:] = False
            self._seen: set[Positions] = set()
        if rule not in self._seen:
            self._seen.add(rule)
            self._masks[rule] = self._slots(self._masks.get(rule), rows, torch.bool, tokens.real.device)
            self._masks[rule][:, start:end] = tokens.mask(rule)
        before, after = before.detach(), after.detach()
        wide = torch.promote_types(before.dtype, torch.float32)
        norms = self._norms.get(key)
        if norms is None:
            norms = self._norms[key] = torch.zeros(2, rows, self._capacity, dtype=wide, device=before.device)
        here = norms[:, :, start:end]
        torch.linalg.vector_norm(before, dim=-1, dtype=wide, out=here[0])
        torch.linalg.vector_norm(after.to(wide) - before.to(wide), dim=-1, out=here[1])
        if factors is not None:
            summed, count = factors
            kept = self._factors.get(key)
            buffer = norms.new_zeros(rows, self._capacity) if kept is None else kept[0]
            buffer[:, start:end] = summed
            self._factors[key] = (buffer, count)
        self.calls[key] += 1

    def collect(self, key: str, activation: torch.Tensor, mask: torch.Tensor) -> None:
        """Keep an activation [batch, tokens, width] that a reading intervention saw."""
        self.collected.setdefault(key, []).append((activation.detach().clone(), mask))

    def selected(self, rule: Positions) -> torch.Tensor | None:
        """Bool[rows, slots] of the tokens that `rule` has selected; None if no edit with it has run."""
        return self._masks.get(rule)

    def truncate(self, slots: int) -> None:
        """Forget what came after the first `slots` slots: drafts that the run ended before accepting."""
        self.end = slots
        for mask in self._masks.values():
            mask[:, slots:] = False

    def finish(self, entries: Iterable[tuple[str, Sequence[str], Sequence[str], Any]]) -> Receipt:
        """The receipt, as (name, keys, sites, one of the interventions) per declared intervention."""
        return Receipt(tuple(self._summary(*entry) for entry in entries))

    def _summary(
        self, name: str, keys: Sequence[str], sites: Sequence[str], edit: Any
    ) -> InterventionReceipt:
        strength = self.strengths[keys[0]]
        mask = self._masks.get(edit.positions)
        common = {
            "name": name,
            "kind": edit.kind,
            "sites": tuple(sites),
            "positions": edit.positions,
            "strengths": tuple(strength.reshape(-1).tolist()),
            "reached": self.reached.issuperset(keys),
            "calls": sum(self.calls[key] for key in keys),
            "cached": self.cached.get(name, 0),
            "expects_change": edit.expects_change,
        }
        measured = [self._norms[key] for key in keys if key in self._norms]
        if mask is None or self._index is None or len(measured) < len(keys):
            rows = 0 if self._index is None else self._index.shape[0]
            return InterventionReceipt(
                **common,
                edited=dict.fromkeys(ROLES, 0),
                changed=0,
                mean_relative=0.0,
                max_relative=0.0,
                first=None,
                last=None,
                rows=rows,
                rows_edited=0,
                mean_strength=None,
            )
        rows = mask.shape[0]
        on = strength.to(mask.device) != 0
        on = on.expand(rows) if on.ndim == 0 else on.repeat_interleave(rows // on.shape[0])
        mask = mask & on.unsqueeze(1)
        if self._prompt is None:
            role = {"prompt": mask, "cursor": torch.zeros_like(mask), "response": torch.zeros_like(mask)}
        else:
            offset = self._index - (self._prompt.unsqueeze(1) - 1)
            role = {
                "prompt": mask & (offset < 0),
                "cursor": mask & (offset == 0),
                "response": mask & (offset > 0),
            }
        relative, changed = [], []
        for norms in measured:
            here = mask.to(norms.device)
            size, change = (norm[here].cpu().double() for norm in (norms[0], norms[1]))
            relative.append(change / size.clamp_min(1e-12))
            changed.append(int((here & (norms[1] > 0)).sum()))
        ratios = torch.cat(relative)
        positions = self._index[mask]
        return InterventionReceipt(
            **common,
            edited={name: int(tokens.sum()) for name, tokens in role.items()},
            changed=min(changed),
            mean_relative=float(ratios.mean()) if len(ratios) else 0.0,
            max_relative=float(ratios.max()) if len(ratios) else 0.0,
            first=int(positions.min()) if len(positions) else None,
            last=int(positions.max()) if len(positions) else None,
            rows=rows,
            rows_edited=int(mask.any(1).sum()),
            mean_strength=self._mean_strength(keys, mask, strength),
        )

    def _mean_strength(self, keys: Sequence[str], mask: torch.Tensor, strength: torch.Tensor) -> float | None:
        """Mean over edited tokens and heads of the strength used; None where no factor was recorded."""
        total, count, rows = 0.0, 0, mask.shape[0]
        for summed, parts in (self._factors[key] for key in keys if key in self._factors):
            scale = strength.to(summed.device, summed.dtype)
            scale = scale.expand(rows) if scale.ndim == 0 else scale.repeat_interleave(rows // len(scale))
            total += float((scale.unsqueeze(1) * summed)[mask.to(summed.device)].sum())
            count += int(parts) * int(mask.sum())
        return total / count if count else None

    def _slots(
        self, buffer: torch.Tensor | None, rows: int, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        return torch.zeros(rows, self._capacity, dtype=dtype, device=device) if buffer is None else buffer

    def _grow(self, needed: int) -> None:
        extra = max(needed, 2 * self._capacity) - self._capacity
        self._capacity += extra
        pad = torch.nn.functional.pad
        self._norms = {key: pad(value, (0, extra)) for key, value in self._norms.items()}
        self._factors = {key: (pad(value, (0, extra)), n) for key, (value, n) in self._factors.items()}
        self._masks = {rule: pad(value, (0, extra)) for rule, value in self._masks.items()}
        self._index = None if self._index is None else pad(self._index, (0, extra))


def _words(positions: Positions) -> str:
    if isinstance(positions, str):
        return positions
    return ", ".join(f"{key}: {value}" for key, value in positions.model_dump(mode="json").items())
