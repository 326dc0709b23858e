"""Activations read in vLLM's models: sums over the span of each text, in buffers that stay put.

As the edits of `sites`, they are hooks that are there before anything is compiled, and how many texts there
are changes no shape. They stand before the edits of their site.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from subvene.interventions import Sizes
from subvene.runner.engines.collecting import Collect, Sums
from subvene.runner.engines.dense import Reduce
from subvene.runner.engines.plan import MOST_UNTOLD, PLAN, Extra
from subvene.runner.engines.vllm.sites import Layout, after, after_pair, before, block_of, part_of, place_of

NAME = "subvene_reader"


@dataclass
class Step:
    """What all readers of a worker share.

    Attributes:
        row: of each token the row that it is added to, [tokens]; the last row is nobody's.
        rows: how many there are beside nobody's.
        is_reading: whether any token of this step is read.
        skips: whether a step that reads nothing is passed over; compiled code passes over none.
    """

    row: torch.Tensor
    rows: int
    is_reading: bool
    skips: bool


class SiteReader(nn.Module):
    """Adds up what is at one site of this rank.

    Args:
        width: of what is here.
        step: the buffers.
        reduce: adds up over ranks, where each has a part of the site.
    """

    row: torch.Tensor
    sums: torch.Tensor
    step: Step

    def __init__(self, width: int, step: Step, reduce: Reduce | None) -> None:
        super().__init__()
        self.reduce = reduce
        self.register_buffer("row", step.row, persistent=False)
        sums = torch.zeros(step.rows + 1, width + 2, dtype=torch.float32, device=step.row.device)
        self.register_buffer("sums", sums, persistent=False)
        self.__dict__["step"], self.skips = step, step.skips

    def is_idle(self) -> bool:
        """Whether nothing of this step is read."""
        return self.skips and not self.step.is_reading

    def forward(self, h: torch.Tensor, residual: torch.Tensor | None = None) -> None:
        """Read `h` [..., width], or the sum of `h` and `residual`: Σ h, Σ ‖h‖, tokens."""
        flat = h.reshape(-1, h.shape[-1])
        stream = (flat if residual is None else flat + residual.reshape(flat.shape)).float()
        squares = stream.square().sum(-1, keepdim=True)
        if self.reduce is not None:
            squares = self.reduce(squares)
        told = torch.cat([stream, squares.sqrt(), torch.ones_like(squares)], dim=-1)
        self.sums.index_add_(0, self.row[: len(flat)], told)


@dataclass
class Live:
    """A text that is read.

    Attributes:
        key: under which the front end asks for it.
        collect: what is read.
        row: where it is added up; None: nowhere yet.
        seen: the position after the last that was added.
        kept: sums of rows that it had before, by site.
        told: whether the front end has been told.
    """

    key: str
    collect: Collect
    row: int | None = None
    seen: int = 0
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    told: bool = False


class Readers:
    """What a rank knows of the texts that are read.

    Args:
        tokens: the most tokens of a step, padding included.
        requests: the most requests of a step.
        device: the model's.
        skips: see `Step`.
    """

    def __init__(self, tokens: int, requests: int, device: torch.device, *, skips: bool) -> None:
        row = torch.full((tokens,), requests, dtype=torch.long, device=device)
        self.step = Step(row, requests, is_reading=False, skips=skips)
        self.sites: dict[str, SiteReader] = {}
        self._live: dict[str, Live] = {}
        self._free = list(range(requests))[::-1]
        self._untold: OrderedDict[str, Live] = OrderedDict()

    def install(
        self,
        model: nn.Module,
        layout: Layout,
        places: Iterable[str],
        sizes: Sizes,
        split: tuple[int, int, Reduce],
    ) -> None:
        """Put readers into this rank's part of a model; arguments as for `sites.install`."""
        for name in places:
            site, _, layer = name[:-1].partition("[")
            if (block := block_of(model, layout, int(layer))) is None:
                continue
            width, _, reduce = part_of(block, layout, site, name, sizes, split)
            self.sites[name] = SiteReader(width, self.step, reduce)
            module, edits = place_of(block, layout, site)
            module.add_module(NAME, self.sites[name])
            if edits is before:
                module.register_forward_pre_hook(_input)
            else:
                module.register_forward_hook(_HOOKS[edits])

    def before(
        self,
        requests: Sequence[str],
        extra: Callable[[str], Extra],
        starts: np.ndarray,
        computed: Sequence[int],
    ) -> None:
        """Say for one step which token is added where.

        Args:
            requests: ids, in the order of the batch.
            extra: the extra arguments of a request.
            starts: [requests + 1], where the tokens of each begin.
            computed: of each request the tokens before those of this step.
        """
        batch = [(i, live) for i, name in enumerate(requests) if (live := self._known(name, extra))]
        if self.step.is_reading:
            self.step.row.fill_(self.step.rows)
        self.step.is_reading = False
        rows = np.full(int(starts[-1]), self.step.rows, dtype=np.int64)
        for i, live in batch:
            begins, at = int(computed[i]), int(starts[i])
            # A token that is computed again, after a preemption, is there already.
            first = max(live.collect.start, live.seen, begins)
            end = min(live.collect.end, begins + int(starts[i + 1]) - at)
            if first < end:
                if live.row is None:
                    live.row = (
                        self._free.pop() if self._free else self._evicted({id(one) for _, one in batch})
                    )
                rows[at + first - begins : at + end - begins] = live.row
                live.seen, self.step.is_reading = end, True
        if self.step.is_reading:
            self.step.row[: len(rows)].copy_(torch.from_numpy(rows), non_blocking=True)

    def _known(self, request: str, extra: Callable[[str], Extra]) -> Live | None:
        if request in self._live:
            return self._live[request]
        wire = (extra(request) or {}).get(PLAN) or {}
        if (collect := wire.get("collect")) is None:
            return None
        sites, start, end = collect
        live = self._live[request] = Live(wire["key"], Collect(sites=tuple(sites), start=start, end=end))
        return live

    def _evicted(self, staying: set[int]) -> int:
        for live in self._live.values():
            if live.row is not None and id(live) not in staying:
                return self._release(live)
        raise RuntimeError("a step reads more texts than the engine was configured for")

    def _release(self, live: Live) -> int:
        if (row := live.row) is None:
            raise RuntimeError("a text without a row has none to give back")
        live.kept, live.row = self._sums(live), None
        for name in self._here(live):
            self.sites[name].sums[row] = 0
        return row

    def _here(self, live: Live) -> list[str]:
        return [name for name in live.collect.sites if name in self.sites]

    def _sums(self, live: Live) -> dict[str, torch.Tensor]:
        """[width + 2] by site, on the device: nothing waits for it here."""
        found = dict(live.kept)
        if live.row is not None:
            for name in self._here(live):
                here = self.sites[name].sums[live.row].clone()
                found[name] = here + found[name] if name in found else here
        return found

    def finished(self, requests: Iterable[str]) -> None:
        """Let texts go; what was read of them is kept until it is asked for."""
        for request in requests:
            if (live := self._live.pop(request, None)) is None:
                continue
            if live.row is not None:
                self._free.append(self._release(live))
            if not live.told:
                self._untold[live.key] = live
        while len(self._untold) > MOST_UNTOLD:
            self._untold.popitem(last=False)

    def drain(self, keys: Iterable[str]) -> Mapping[str, Sums]:
        """What was read of texts, by key; it is told once."""
        wanted = set(keys)
        found = {key: self._untold.pop(key) for key in wanted & self._untold.keys()}
        for live in self._live.values():
            if live.key in wanted and not live.told:
                live.told, found[live.key] = True, live
        return {key: _told(self._sums(live)) for key, live in found.items()}


def _input(module: Any, args: Any) -> None:
    if not module.subvene_reader.is_idle():
        module.subvene_reader(args[0])


def _output(module: Any, _: Any, output: Any) -> None:
    if not module.subvene_reader.is_idle():
        module.subvene_reader(output[0] if isinstance(output, tuple) else output)


def _pair(module: Any, _: Any, output: Any) -> None:
    if not module.subvene_reader.is_idle():
        module.subvene_reader(output[0], output[1])


_HOOKS = {after: _output, after_pair: _pair}
"""What reads, by what edits at the same place."""


def _told(sums: Mapping[str, torch.Tensor]) -> Sums:
    values: dict[str, np.ndarray] = {name: one.cpu().numpy() for name, one in sums.items()}
    return {
        "tokens": {name: round(float(one[-1])) for name, one in values.items()},
        "sums": {name: one[:-1].astype("<f4").tobytes() for name, one in values.items()},
    }
