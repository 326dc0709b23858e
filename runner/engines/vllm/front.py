"""What stands before vLLM's scheduler: admission of requests, and their receipts.

Nothing here imports vLLM; `plugin` calls it from vLLM's own classes.
"""

from __future__ import annotations

import math
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any, TypedDict

from subvene.interventions.positions import plain_positions
from subvene.runner.edits.not_finite import NotFiniteError
from subvene.runner.edits.receipt import NotSteeredError
from subvene.runner.engines.admission import Asked, admit, parse
from subvene.runner.engines.catalogue import Catalogue
from subvene.runner.engines.collecting import Collect, Collected, joined
from subvene.runner.engines.collecting import told as as_told
from subvene.runner.engines.errors import RequestError
from subvene.runner.engines.fingerprints import Fingerprint, does
from subvene.runner.engines.intervals import count, intervals, within
from subvene.runner.engines.plan import Plan, Told, WirePlan
from subvene.runner.engines.vllm import versions
from subvene.runner.engines.vllm.settings import Settings, opened, read
from subvene.runner.models.identity import files_sha256

_MOST_PENDING = 65536


@dataclass(frozen=True)
class SiteReceipt:
    """What all interventions of a request together did at one site.

    Attributes:
        tokens: computations of a token with an edit; a token that is computed again counts again.
        changed: those whose activation was another afterwards.
        mean_relative: mean of ‖Δ‖/‖h‖ over them.
    """

    tokens: int
    changed: int
    mean_relative: float


@dataclass(frozen=True)
class EngineReceipt:
    """What one intervention did in one request; the names are those of `InterventionReceipt`.

    Attributes:
        artifact: the artifact that declares it.
        name: its name.
        kind: its kind.
        sites: where it acts.
        positions: the rule in force.
        strengths: the one in force.
        edited: tokens edited at each site, by role; a token counts once, however often it is computed.
        cached: tokens that had been edited in the prefix cache; not counted elsewhere.
        changed: tokens changed at the site where fewest are; None where others of the request act there too.
        mean_relative: mean of ‖Δ‖/‖h‖ over tokens and sites; None where others of the request act there too.
        first: smallest 0-based position edited; None if none was.
        last: largest.
        rows: answers of the request.
        rows_edited: answers in which a token was edited.
        expects_change: whether it counts as not steered if nothing changes.
        at: what was measured at each site.
    """

    artifact: str
    name: str
    kind: str
    sites: tuple[str, ...]
    positions: Any
    strengths: tuple[float]
    edited: dict[str, int]
    cached: int
    changed: int | None
    mean_relative: float | None
    first: int | None
    last: int | None
    rows: int
    rows_edited: int
    expects_change: bool
    at: dict[str, SiteReceipt]


@dataclass
class Steering:
    """What is done to one request, and in the end what came of it: the field `subvene` of vLLM's outputs.

    Attributes:
        key: by which workers know it.
        plan: what is done.
        asked: what was asked for, strength 0 among it.
        prompt: tokens that the request began with.
        tokens: tokens of each answer, by its index.
        cached: prompt tokens of each answer that came from the cache.
        receipts: what each intervention did; None before the end.
        error: why it was not steered as declared.
        collect: what is read of it.
        collected: what was read, by site.
    """

    key: str
    plan: Plan
    asked: Sequence[Asked]
    prompt: int
    tokens: dict[int, int] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=dict)
    receipts: tuple[EngineReceipt, ...] | None = None
    error: NotSteeredError | NotFiniteError | None = None
    collect: Collect | None = None
    collected: dict[str, Collected] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The receipts as JSON values, and what was collected."""
        receipts = {"receipt": [asdict(receipt) for receipt in self.receipts or ()]}
        return receipts if self.collected is None else {**receipts, "collected": as_told(self.collected)}

    def conclude(self, told: Iterable[Told]) -> None:
        """Take what the ranks tell of the request, each of its own sites."""
        told = list(told)
        if self.collect is not None:
            self.collected = joined(self.collect, [rank["sums"] for rank in told if "sums" in rank])
        sites: dict[str, list[float]] = {}
        problems = []
        for rank in told:
            sites = {**rank["sites"], **sites}
            problems += [rank["problem"]] if rank["problem"] else []
        at = {name: _site(values) for name, values in sites.items()}
        self.receipts = tuple(self._receipt(one, at) for one in self.asked)
        if not problems:
            problems = [words for receipt in self.receipts for words in self._unsteered(receipt)]
        if problems:
            words = "this request was not steered as declared: " + "; ".join(problems)
            self.error = NotSteeredError(words)
        elif any(not math.isfinite(site.mean_relative) for site in at.values()):
            self.error = NotFiniteError("an edit of this request gave activations that are not finite")

    def _receipt(self, one: Asked, at: Mapping[str, SiteReceipt]) -> EngineReceipt:
        own = tuple(edit.site for edit in one.intervention.edits)
        others = {
            edit.site for other in self._acting if other is not one for edit in other.intervention.edits
        }
        here = {name: at.get(name, SiteReceipt(0, 0, 0.0)) for name in own}
        # What is off has done nothing, whoever acts beside it.
        is_off, is_alone = one.strength == 0, not others & set(own)
        here = {} if is_off else here
        total = sum(site.tokens for site in here.values())
        spans = self._spans(one) if one.strength else []
        begins = self.plan.prompt
        computed = [within(row, cached, 2**31) for row, cached in zip(spans, self._cached_rows, strict=False)]
        roles = {"prompt": (0, begins - 1), "cursor": (begins - 1, begins), "response": (begins, 2**31)}
        ends = [position for row in computed for first, end in row for position in (first, end - 1)]
        return EngineReceipt(
            artifact=one.artifact,
            name=one.intervention.name,
            kind=one.intervention.kind,
            sites=own,
            positions=plain_positions(one.positions),
            strengths=(one.strength,),
            edited={role: sum(count(row, *span) for row in computed) for role, span in roles.items()},
            cached=sum(count(row, 0, cached) for row, cached in zip(spans, self._cached_rows, strict=False)),
            changed=min((site.changed for site in here.values()), default=0) if is_off or is_alone else None,
            mean_relative=sum(site.tokens * site.mean_relative for site in here.values()) / max(total, 1)
            if is_off or is_alone
            else None,
            first=min(ends, default=None),
            last=max(ends, default=None),
            rows=len(self.tokens),
            rows_edited=sum(bool(row) for row in computed),
            expects_change=any(edit.expects_change for edit in one.intervention.edits),
            at=here,
        )

    @property
    def _acting(self) -> list[Asked]:
        return [one for one in self.asked if one.strength]

    @property
    def _cached_rows(self) -> list[int]:
        return [self.cached.get(row, 0) for row in sorted(self.tokens)]

    def _spans(self, one: Asked) -> list[list[tuple[int, int]]]:
        """The edited tokens of each answer that a model has to have seen: the last one it has not."""
        rule = intervals(one.positions, self.plan.prompt, self.prompt)
        if not _is_of_the_end(rule, one, self.plan.prompt):
            rule = intervals(one.positions, self.plan.prompt)
        seen = [self.prompt + max(self.tokens[row] - 1, 0) for row in sorted(self.tokens)]
        return [within(rule, 0, end) for end in seen]

    def _unsteered(self, receipt: EngineReceipt) -> list[str]:
        if not receipt.strengths[0]:
            return []
        what = f"{receipt.name!r} ({receipt.kind} at {', '.join(receipt.sites)}, {receipt.positions})"
        tokens = sum(receipt.edited.values())
        if not tokens and not receipt.cached:
            return [f"{what} edited no token: no position of this request matches the rule"]
        for name, site in receipt.at.items():
            if site.tokens < tokens:
                return [f"{what}: {name} edited {site.tokens} of {tokens} tokens"]
            if tokens and receipt.expects_change and not site.changed:
                return [
                    f"{what} ran on {site.tokens} tokens and changed no activation at {name}: its tensor is "
                    "zero, or the edit is too small for the model's dtype"
                ]
        return []


def _is_of_the_end(rule: object, one: Asked, prompt: int) -> bool:
    """Whether a rule needs to know where the response ends, so that it was admitted for scoring only."""
    try:
        intervals(one.positions, prompt)
    except RequestError:
        return True
    return False


def _site(values: Sequence[float]) -> SiteReceipt:
    tokens, changed, total = values
    return SiteReceipt(int(tokens), int(changed), total / max(tokens, 1.0))


class EngineRecord(TypedDict):
    """An engine and the model in it."""

    engine: str
    versions: dict[str, str]
    files: str
    dtype: str
    collect: list[str]


@dataclass(frozen=True)
class About:
    """What an engine holds, by hashes.

    Attributes:
        model: engine, versions, hash of the model's files, dtype.
        artifacts: by name what they do (`fingerprints.does`).
    """

    model: EngineRecord
    artifacts: dict[str, Fingerprint]


class Front:
    """What an engine's front end holds.

    Args:
        settings: what it was started with.
        config: the model's transformers config.
    """

    def __init__(self, settings: Settings, config: Any) -> None:
        self.catalogue: Catalogue = settings.load(config)
        self.config, self.collects = config, settings.collect
        self._does = {name: _does(folder) for name, folder in settings.artifacts.items()}
        # From admission to the moment at which vLLM makes the request's state.
        self.pending: OrderedDict[str, Steering] = OrderedDict()
        self.tagged: dict[str, list[Steering]] = {}

    def admit(
        self,
        asked: object,
        prompt: int,
        *,
        scores: bool = False,
        ends: bool = False,
        tag: str | None = None,
    ) -> WirePlan:
        """Check what a request asks for.

        Args:
            asked: as the request says it.
            prompt: tokens that it begins with.
            scores: whether nothing will be computed after them.
            ends: likewise, of one answer; what a request that collects has to be.
            tag: for whom its receipts are, of those in `tagged`.

        Returns:
            The plan, as it travels.

        Raises:
            RequestError: with the reason.
        """
        wishes = parse(asked)
        plan, wanted = admit(wishes, self.catalogue, prompt, scores=scores)
        if (collect := wishes.collect) is not None:
            if wanted or not ends:
                raise RequestError(
                    "subvene.collect: of the untouched model (`artifacts: []`), `max_tokens` and `n` 1"
                )
            collect.check(prompt, self.collects)
        key = uuid.uuid4().hex
        self.pending[key] = Steering(key, plan, wanted, prompt, collect=collect)
        if tag in self.tagged:
            self.tagged[tag].append(self.pending[key])
        while len(self.pending) > _MOST_PENDING:
            self.pending.popitem(last=False)
        wire: WirePlan = {**plan.to_wire(), "key": key}
        if collect is not None:
            wire["collect"] = [list(collect.sites), collect.start, collect.end]
        return wire

    def add(self, name: str, folder: str) -> None:
        """Hold another artifact.

        Raises:
            SubveneError: it cannot be read or run, or there is no room.
        """
        self.catalogue.add(read(name, folder, self.config))
        self._does[name] = _does(folder)

    def about(self, source: str, dtype: str) -> About:
        """What is held, by hashes; reads the model's files when it is first asked.

        Args:
            source: where vLLM has read the model from.
            dtype: in which it runs.
        """
        model: EngineRecord = {
            "engine": "vllm",
            "versions": {"vllm": str(versions.installed()), "subvene": version("subvene")},
            "files": files_sha256(source, self.config),
            "dtype": dtype.removeprefix("torch."),
            "collect": list(self.collects),
        }
        return About(model, {name: self._does[name] for name in self.catalogue.held})

    def check_unused(self, name: str, running: Iterable[Steering]) -> None:
        """Refuse to let go of an artifact that a request needs.

        Raises:
            RequestError: how many do.
        """
        users = sum(any(one.artifact == name for one in steering.asked) for steering in running)
        if users:
            raise RequestError(f"{name}: {users} requests are running with it; wait for them, or abort them")


def _does(folder: str) -> Fingerprint:
    held = opened(folder)
    return does(held.spec, held.tensors)
