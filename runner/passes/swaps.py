"""States of sources put into bases at one layer, the cells side by side in one pass.

A pass computes what the edits change: it begins at the layer, and, where the model allows it, at each row's
first edited token, which sees the kept keys and values of the tokens before it. The edits of a row then stand
side by side in one row.

    base               t0 t1 t2 t3               keys and values, kept
    edits at t1, t3       t1 t2 t3 | t3          each sees what stands before it in the base, and itself
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from transformers.cache_utils import Cache

from subvene.runner.models.forked_cache import Branch, Own
from subvene.runner.passes.kept import at_site
from subvene.runner.passes.restart import beginning_at, logits_at
from subvene.runner.passes.unedited import Kept, UneditedTexts
from subvene.specs import Site

Edit = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From vectors of the base and of the source, [n, width] each, to what is put in the base's place."""
Way = Literal["from_token", "from_layer", "whole"]
"""What a pass computes: from the edited layer and token on, from the layer on, or all."""


@dataclass(frozen=True, eq=False)
class Pairing:
    """Which tokens a place pairs.

    Attributes:
        units: Long[rows, slots], which vector of the source goes into a token of the base, plus 1; 0: none.
        slots: Long[rows, units], where in the source each vector is.
    """

    units: torch.Tensor
    slots: torch.Tensor

    @property
    def first(self) -> torch.Tensor:
        """Long[rows], each row's first token that is edited."""
        return (self.units > 0).long().argmax(1)


@dataclass(frozen=True, eq=False)
class Swap:
    """What one cell swaps.

    Attributes:
        pairing: of its place.
        states: of all texts at its layer, [texts, slots, width].
        base: Long[rows], each row's base among the texts.
        source: Long[rows], its source.
    """

    pairing: Pairing
    states: torch.Tensor
    base: torch.Tensor
    source: torch.Tensor

    def vectors(self, rows: torch.Tensor, sources: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of some rows, [n, width] each: those that are edited, and the sources' in their order."""
        units = self.pairing.units[rows]
        number, slot = (units > 0).nonzero(as_tuple=True)
        return self.states[self.base[rows[number]], slot], self.of(sources[number], units[number, slot])

    def of(self, rows: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        """Vectors of the sources of some rows, [n, width]; `units` as a pairing counts them."""
        return self.states[self.source[rows], self.pairing.slots[rows, units - 1]]

    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean vector of each row, of the base's tokens and of the source's, [rows, width] each."""
        rows = torch.arange(len(self.base), device=self.base.device)
        edited = self.pairing.units > 0
        number = edited.nonzero(as_tuple=True)[0]
        both = torch.cat(self.vectors(rows, rows), dim=-1).float()
        sums = both.new_zeros(len(rows), both.shape[-1]).index_add_(0, number, both)
        base, other = (sums / edited.sum(1, keepdim=True)).chunk(2, dim=-1)
        return base, other

    @property
    def counts(self) -> torch.Tensor:
        """Long[rows], how many vectors of its source each row needs."""
        return self.pairing.units.amax(1)

    @property
    def equal(self) -> float:
        """The share of rows whose source has what the base has: nothing is swapped there."""
        base, source = self.means()
        return float((base == source).all(-1).float().mean())


@dataclass(frozen=True, eq=False)
class _Segment:
    """One edit's part of a pass: the tokens from its first one on, of each row.

    Attributes:
        name: of the place.
        edit: what is done there.
        start: the part's first column.
        position: Long[rows, columns], where each column stands in its text; past its end in padding.
        real: Bool[rows, columns], no padding.
        units: Long[rows, columns], as `Pairing` has them.
    """

    name: str
    edit: Edit
    start: int
    position: torch.Tensor
    real: torch.Tensor
    units: torch.Tensor


class LayerSwaps:
    """The cells of one layer.

    Args:
        texts: that the rows are of.
        site: where states are swapped.
        layer: 0-based.
        kept: what the texts have left, of this layer too.
        swaps: by place.
        base: Long[rows], each row's base among the texts.
        way: how passes are made.

    Attributes:
        computed: tokens × blocks that have been passed.
    """

    def __init__(
        self,
        texts: UneditedTexts,
        site: Site,
        layer: int,
        kept: Kept,
        swaps: Mapping[str, Swap],
        base: torch.Tensor,
        way: Way,
    ) -> None:
        self.texts, self.site, self.layer, self.swaps, self.way = texts, site, layer, swaps, way
        self._kept, self._base = kept, base
        self.computed = 0

    @property
    def keeps_nothing(self) -> bool:
        """Whether there are no keys and values to go on from."""
        return self._kept.cache is None

    def logits(
        self,
        edits: Sequence[tuple[str, Edit]],
        rows: torch.Tensor,
        sources: torch.Tensor | None = None,
        *,
        way: Way | None = None,
    ) -> torch.Tensor:
        """The logits behind each row, [edits, rows, vocabulary]; gradients reach what the edits hold.

        Args:
            edits: places with what is done there, each for itself.
            rows: Long[rows], of the data.
            sources: Long[rows], rows whose sources are put in; None: each row's own.
            way: how passes are made; None: as was tried.
        """
        way = way or self.way
        rows = rows.to(self._base.device)
        sources = rows if sources is None else sources.to(rows.device)
        if way == "from_token":
            return self._pass(way, edits, rows, sources)
        return torch.cat([self._pass(way, [edit], rows, sources) for edit in edits])

    def _pass(
        self, way: Way, edits: Sequence[tuple[str, Edit]], rows: torch.Tensor, sources: torch.Tensor
    ) -> torch.Tensor:
        all_texts, n_layers = self.texts, self.texts.anatomy.sizes.n_layers
        segments = self._segments(edits, rows, from_token=way == "from_token")
        texts = self._base[rows].unsqueeze(1)
        position = torch.cat([segment.position for segment in segments], dim=1)
        slots = position.clamp_max(all_texts.ids.shape[1] - 1)
        count = position.shape[1]
        lasts = torch.stack([segment.start + segment.real.sum(1) - 1 for segment in segments])
        ends = (torch.arange(len(rows), device=rows.device) * count + lasts).flatten()
        inputs: dict[str, Any] = {"input_ids": all_texts.ids[texts, slots]}
        if way == "from_token":
            inputs |= self._continued(segments, rows, position)
        else:
            inputs |= {"attention_mask": segments[0].real.long(), "use_cache": False}
        entry = 0 if way == "whole" else entry_of(self.site, self.layer, n_layers)

        def change(activation: torch.Tensor) -> torch.Tensor:
            return self._edited(activation, segments, rows, sources)

        with contextlib.ExitStack() as stack:
            if way == "whole" or self.site != "block_output" or self.layer >= entry:
                stack.enter_context(at_site(all_texts.anatomy, self.site, self.layer, change))
            if way != "whole":
                hidden = self._kept.inputs[entry][texts, slots]
                if self.site == "block_output" and self.layer < entry:
                    hidden = change(hidden)
                tuples = {"returns_tuple": all_texts.returns_tuple}
                stack.enter_context(beginning_at(all_texts.anatomy, entry, hidden, **tuples))
            found = logits_at(all_texts.model, ends, **inputs)
        self.computed += position.numel() * (n_layers - entry)
        return found.float().unflatten(0, (len(edits), len(rows)))

    def _segments(
        self, edits: Sequence[tuple[str, Edit]], rows: torch.Tensor, *, from_token: bool
    ) -> list[_Segment]:
        lengths = self.texts.lengths[self._base[rows]].unsqueeze(1)
        found, start = [], 0
        for name, edit in edits:
            pairing = self.swaps[name].pairing
            first = pairing.first[rows].unsqueeze(1) * int(from_token)
            columns = torch.arange(int((lengths - first).max()), device=rows.device)
            position = first + columns
            real = position < lengths
            units = pairing.units[rows].gather(1, position.clamp_max(pairing.units.shape[1] - 1)) * real
            found.append(_Segment(name, edit, start, position, real, units))
            start += len(columns)
        return found

    def _continued(
        self, segments: Sequence[_Segment], rows: torch.Tensor, position: torch.Tensor
    ) -> dict[str, Any]:
        """What makes each segment go on from the base's tokens before its first one."""
        if self._kept.cache is None:
            raise RuntimeError("the texts kept no keys and values")
        widths = torch.tensor([segment.position.shape[1] for segment in segments], device=rows.device)
        number = torch.arange(len(segments), device=rows.device).repeat_interleave(widths)
        first = torch.stack([segment.position[:, 0] for segment in segments], dim=1)[:, number]
        before = int(first.max())
        base = torch.arange(before, device=rows.device) < first.unsqueeze(-1)
        own = (number.unsqueeze(1) == number) & (position.unsqueeze(1) <= position.unsqueeze(2))
        seen = torch.cat([base, own], dim=2).unsqueeze(1)
        dtype = self.texts.model.dtype
        texts = self._base[rows]
        layers = [
            Branch([Own(keys[:, :, :before], values[:, :, :before], texts)], before)
            for keys, values in self._kept.cache
        ]
        longest = self.texts.ids.shape[1] - 1
        return {
            "attention_mask": torch.zeros(seen.shape, dtype=dtype, device=rows.device).masked_fill(
                ~seen, torch.finfo(dtype).min
            ),
            "position_ids": position.clamp_max(longest),
            "past_key_values": Cache(layers=cast(Any, layers)),
            "use_cache": True,
        }

    def _edited(
        self,
        activation: torch.Tensor,
        segments: Sequence[_Segment],
        rows: torch.Tensor,
        sources: torch.Tensor,
    ) -> torch.Tensor:
        new = activation.clone()
        wide = torch.promote_types(activation.dtype, torch.float32)
        for segment in segments:
            number, column = (segment.units > 0).nonzero(as_tuple=True)
            at = column + segment.start
            source = self.swaps[segment.name].of(sources[number], segment.units[number, column])
            new[number, at] = segment.edit(activation[number, at].to(wide), source.to(wide)).to(new.dtype)
        return new


def entry_of(site: Site, layer: int, n_layers: int) -> int:
    """The first block that an edit leaves to run."""
    return min(layer + (site == "block_output"), n_layers - 1)
