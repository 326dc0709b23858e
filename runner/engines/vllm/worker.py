"""The control plane of one worker: which token is whose, where it stands, how strongly it is edited."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from subvene.runner.engines.admission import MOST_INTERVALS
from subvene.runner.engines.catalogue import Catalogue, Held
from subvene.runner.engines.dense import StrengthTables, cells
from subvene.runner.engines.plan import MOST_UNTOLD, PLAN, Extra, Plan, Told
from subvene.runner.engines.served import ServedArtifact
from subvene.runner.engines.vllm.readers import Readers
from subvene.runner.engines.vllm.sites import MEASURES, SiteEdit, Step


@dataclass
class Live:
    """A request that edits something.

    Attributes:
        plan: what is done to it.
        key: under which the front end asks what came of it.
        sites: where.
        stages: how many its edits take.
        slot: its place in the tables; None while it waits.
        seen: what was measured in slots that it had before, by site.
        problem: why it is not edited.
        told: whether the front end has been told.
    """

    plan: Plan
    key: str
    sites: frozenset[str]
    stages: int = 1
    slot: int | None = None
    seen: dict[str, torch.Tensor] = field(default_factory=dict)
    problem: str | None = None
    told: bool = False


class Worker:
    """What a rank knows of the requests in its batch.

    Args:
        catalogue: what is held, as the front end holds it.
        tokens: the most tokens of a step, padding included.
        requests: the most requests of a step.
        device: the model's.
        skips: whether a site at which nothing of a step is edited may be left out.
        readers: what reads activations; None: nothing does.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        tokens: int,
        requests: int,
        device: torch.device,
        *,
        skips: bool,
        readers: Readers | None = None,
    ) -> None:
        self.catalogue, self.readers = catalogue, readers
        groups, depth = len(catalogue.groups), catalogue.depth
        self.tables = StrengthTables(requests, MOST_INTERVALS, groups, depth, device)
        nobody = self.tables.nobody
        self.step = Step(
            scale=torch.zeros(tokens, cells(depth, groups), dtype=torch.float32, device=device),
            slot=torch.full((tokens,), nobody, dtype=torch.long, device=device),
            slots=requests,
            active=frozenset(),
            skips=skips,
        )
        self.sites: dict[str, SiteEdit] = {}
        self._identity: dict[int, str] = {}
        self._sites: dict[int, tuple[str, ...]] = {}
        self._live: dict[str, Live] = {}
        self._free = list(range(requests))[::-1]
        self._untold: OrderedDict[str, list[Live]] = OrderedDict()
        self._filled = 0

    def hold(self, sites: Mapping[str, SiteEdit]) -> None:
        """Take the sites that are on this rank, and fill them."""
        self.sites = dict(sites)
        for held in self.catalogue.held.values():
            self._fill(held)

    def add(self, artifact: ServedArtifact) -> None:
        """Hold another artifact; there is room for it, or nothing changes."""
        self._fill(self.catalogue.add(artifact))

    def remove(self, name: str) -> None:
        """Hold an artifact no longer; what still asks for it is not steered, and its receipt says so."""
        held = self.catalogue.remove(name)
        for group in held.groups:
            self._identity.pop(group)
            self._sites.pop(group)
        for site, columns in held.columns.items():
            if site in self.sites:
                self.sites[site].dense.clear(columns)

    def _fill(self, held: Held) -> None:
        places = {site: iter(columns) for site, columns in held.columns.items()}
        for index, (group, one) in enumerate(zip(held.groups, held.artifact.interventions, strict=True)):
            self._identity[group] = f"{held.artifact.digest}.{index}"
            self._sites[group] = tuple(edit.site for edit in one.edits)
            for edit in one.edits:
                at = [next(places[edit.site]) for _ in range(edit.width)]
                if edit.site in self.sites:
                    self.sites[edit.site].dense.fill(at, group, edit.columns)

    def before(
        self,
        requests: Sequence[str],
        extra: Callable[[str], Extra],
        starts: np.ndarray,
        positions: torch.Tensor,
        computed: Sequence[int] = (),
    ) -> None:
        """Fill the buffers of one step.

        Args:
            requests: ids, in the order of the batch.
            extra: the extra arguments of a request.
            starts: [requests + 1], where the tokens of each begin.
            positions: [tokens], absolute, as the model gets them.
            computed: of each request the tokens before those of this step; for `readers` alone.
        """
        if self.readers is not None:
            self.readers.before(requests, extra, starts, computed)
        batch = [self._known(request, extra) for request in requests]
        acting = [live for live in batch if live is not None]
        self._clear()
        if not acting:
            return
        slots = self._slots(batch, acting)
        total = int(starts[-1])
        slot = self.step.slot[:total]
        slot.copy_(torch.from_numpy(np.repeat(slots, np.diff(starts))), non_blocking=True)
        self.tables.scale(
            slot,
            positions[:total],
            width=self.tables.width(slots.tolist()),
            out=self.step.scale[:total],
        )
        self._filled = total
        # What a batch is edited at changes when a request comes or goes, not with every token.
        self.step.active = frozenset().union(*{live.sites for live in acting})
        self.step.stages = max(live.stages for live in acting)

    def _clear(self) -> None:
        """What the step before has filled; a padded token of this one may lie there."""
        self.step.scale[: self._filled] = 0
        self.step.slot[: self._filled] = self.tables.nobody
        self.step.active, self._filled = frozenset(), 0

    def _known(self, request: str, extra: Callable[[str], Extra]) -> Live | None:
        if request in self._live:
            return self._live[request]
        wire = (extra(request) or {}).get(PLAN)
        if wire is None or not wire["edits"]:
            return None
        plan = Plan.from_wire(wire)
        sites = frozenset(site for edit in plan.edits for site in self._sites.get(edit.group, ()))
        live = Live(plan, wire["key"], sites, 1 + max(edit.stage for edit in plan.edits))
        if any(self._identity.get(edit.group) != edit.identity for edit in plan.edits):
            live.problem = "an artifact that it asks for was removed before it ran"
        self._live[request] = live
        return live

    def _slots(self, batch: Sequence[Live | None], acting: Sequence[Live]) -> np.ndarray:
        for live in acting:
            if live.slot is None:
                live.slot = self._free.pop() if self._free else self._evicted(acting)
                edits = () if live.problem else live.plan.edits
                self.tables.put(live.slot, [(e.group, e.stage, e.strength, e.positions) for e in edits])
        nobody = self.tables.nobody
        slots = (nobody if live is None or live.slot is None else live.slot for live in batch)
        return np.fromiter(slots, dtype=np.int64, count=len(batch))

    def _evicted(self, acting: Sequence[Live]) -> int:
        """The slot of a request that is not in this step: it was preempted, and gets another later."""
        staying = {id(live) for live in acting}
        for live in self._live.values():
            if live.slot is not None and id(live) not in staying:
                return self._release(live)
        raise RuntimeError("a step has more requests than the engine was configured for")

    def _release(self, live: Live) -> int:
        if (slot := live.slot) is None:
            raise RuntimeError("a request without a slot has none to give back")
        live.seen, live.slot = self._measured(live), None
        for name in live.sites & self.sites.keys():
            self.sites[name].seen[slot] = 0
        self.tables.clear(slot)
        return slot

    def _measured(self, live: Live) -> dict[str, torch.Tensor]:
        """[measures] by site, on the device: nothing waits for it here."""
        found = dict(live.seen)
        if live.slot is not None:
            for name in live.sites & self.sites.keys():
                here = self.sites[name].seen[live.slot].clone()
                found[name] = here + found[name] if name in found else here
        return found

    def finished(self, requests: Iterable[str]) -> None:
        """Let requests go; what they did is kept until it is asked for."""
        if self.readers is not None:
            self.readers.finished(requests)
        for request in requests:
            if (live := self._live.pop(request, None)) is None:
                continue
            if live.slot is not None:
                self._free.append(self._release(live))
            if not live.told:
                self._untold.setdefault(live.key, []).append(live)
        while len(self._untold) > MOST_UNTOLD:
            self._untold.popitem(last=False)

    def drain(self, keys: Iterable[str]) -> dict[str, Told]:
        """What requests did, by key; it is told once."""
        wanted = dict.fromkeys(keys)
        found: dict[str, list[Live]] = {key: self._untold.pop(key, []) for key in wanted}
        for live in self._live.values():
            if live.key in found and not live.told:
                live.told = True
                found[live.key].append(live)
        told = {key: self._told(lives) for key, lives in found.items()}
        for key, sums in (self.readers.drain(wanted) if self.readers is not None else {}).items():
            told[key]["sums"] = sums
        return told

    def _told(self, lives: Sequence[Live]) -> Told:
        sums: dict[str, torch.Tensor] = {}
        for live in lives:
            for name, values in self._measured(live).items():
                sums[name] = sums.get(name, torch.zeros(MEASURES)) + values.cpu()
        problems = [live.problem for live in lives if live.problem]
        return {
            "problem": problems[0] if problems else None,
            "sites": {name: values.tolist() for name, values in sums.items()},
        }
