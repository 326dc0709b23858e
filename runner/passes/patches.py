"""States of one run put into another, many places at a time.

A patch is a place in the model and some tokens. What a patch leaves unchanged is not computed: a pass begins
at the first layer that is patched, and, where the model allows it, at each patch's first token. The rest of
every patch's text then stands behind the others in one row (`packed`), attends to the base's keys and values
of the tokens before it and to its own, and has the positions that it has in the text.

    base        t0 t1 t2 t3            keys and values, kept
    patch at t1    t1 t2 t3            sees t0 of the base
    patch at t2       t2 t3            sees t0 t1 of the base
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from transformers.cache_utils import Cache

from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.devices import input_device
from subvene.runner.models.forked_cache import Branch, Own, why_not_forked, why_not_in_one_row
from subvene.runner.passes.kept import KeptRun, Place, States, adding, at_site
from subvene.runner.passes.restart import beginning_at, logits_at
from subvene.specs import Site

PatchWay = Literal["packed", "restarted", "whole"]
"""`packed`: from the patched layer and token on. `restarted`: from the layer on, whole texts. `whole`: from
the embeddings on."""
WAYS: tuple[PatchWay, ...] = ("packed", "restarted", "whole")
Score = Callable[[torch.Tensor], torch.Tensor]
"""From logits [n, vocabulary] to what is measured, [n, metrics]."""

# What a pass takes, in tokens: of one row, whose mask grows with the square, and of all rows.
_LONGEST, _MOST = 1024, 4096


@dataclass(frozen=True)
class Patch:
    """Where a state is put.

    Attributes:
        site: of the model.
        layers: 0-based, ascending; all of them at once.
        tokens: 0-based, ascending; all of them at once.
        heads: of `attention_heads`, those that are patched; None: the whole width.
    """

    site: Site
    layers: tuple[int, ...]
    tokens: tuple[int, ...]
    heads: tuple[int, ...] | None = None


@dataclass(frozen=True)
class _Packing:
    """Where the texts of some patches lie in a pass.

    Attributes:
        patches: in their order.
        firsts: the first token of each that is computed.
        starts: where that one lies.
        count: tokens of all.
        tokens: of a whole text.
    """

    patches: tuple[Patch, ...]
    firsts: tuple[int, ...]
    starts: tuple[int, ...]
    count: int
    tokens: int

    @property
    def position(self) -> torch.Tensor:
        """Long[count]: where each stands in its text."""
        return torch.cat([torch.arange(first, self.tokens) for first in self.firsts])

    @property
    def patch(self) -> torch.Tensor:
        """Long[count]: which patch each belongs to."""
        lengths = torch.tensor([self.tokens - first for first in self.firsts])
        return torch.arange(len(self.firsts)).repeat_interleave(lengths)

    @property
    def lasts(self) -> torch.Tensor:
        """Long[patches]: where the last token of each lies."""
        return torch.tensor([s + self.tokens - f - 1 for s, f in zip(self.starts, self.firsts, strict=True)])

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """What is added to attention scores, [1, 1, count, tokens + count]: 0 where a key is seen."""
        position, patch = self.position, self.patch
        first = torch.tensor(self.firsts)[patch]
        base = torch.arange(self.tokens).unsqueeze(0) < first.unsqueeze(1)
        own = (patch.unsqueeze(1) == patch) & (position.unsqueeze(0) <= position.unsqueeze(1))
        seen = torch.cat([base, own], dim=1)
        return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[None, None]


class Patcher:
    """A base run, and what becomes of it when states of another run are put into it.

    Args:
        anatomy: of the model, which is in evaluation mode.
        base: the run that is patched.
        source: states of the same shape, or of one row for all; of every place that patches name.
        score: what is measured of the last token.
        way: how passes are made.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        base: KeptRun,
        source: Mapping[Place, torch.Tensor],
        score: Score,
        way: PatchWay,
    ) -> None:
        self._anatomy, self._base, self._source = anatomy, base, source
        self._score, self._way = score, way
        self._model = cast(Any, anatomy.model)
        self.computed = 0
        """Tokens that have been passed through blocks: tokens × blocks."""

    @property
    def base_values(self) -> torch.Tensor:
        """What is measured of the base, [rows, metrics]."""
        return self._score(self._base.logits)

    @torch.no_grad()
    def values(self, patches: Sequence[Patch]) -> torch.Tensor:
        """What is measured with each patch: [patches, rows, metrics]."""
        if not patches:
            return self.base_values[:0].unsqueeze(0)[:0]
        found: dict[int, torch.Tensor] = {}
        by_entry: dict[int, list[int]] = {}
        for i, patch in enumerate(patches):
            if self._changes_nothing(patch):
                found[i] = self.base_values
            else:
                by_entry.setdefault(self._entry(patch), []).append(i)
        for entry, indices in sorted(by_entry.items()):
            for chosen in self._passes(indices, patches):
                values = self._pass(entry, [patches[i] for i in chosen])
                found |= dict(zip(chosen, values, strict=True))
        return torch.stack([found[i] for i in range(len(patches))])

    def _changes_nothing(self, patch: Patch) -> bool:
        """Whether all that would be put there is there: the values are then the base's, to the last bit."""
        tokens, columns = list(patch.tokens), self._columns(patch)
        for layer in patch.layers:
            own = self._base.states[patch.site, layer][:, tokens]
            new = self._source[patch.site, layer][:, tokens].expand_as(own)
            if not torch.equal(
                own if columns is None else own[..., columns], new if columns is None else new[..., columns]
            ):
                return False
        return True

    def _entry(self, patch: Patch) -> int:
        """The first layer whose block is run."""
        if self._way == "whole":
            return 0
        first = patch.layers[0] + (patch.site == "block_output")
        return min(first, self._anatomy.sizes.n_layers - 1)

    def _first(self, patch: Patch) -> int:
        return patch.tokens[0] if self._way == "packed" else 0

    def _passes(self, indices: Sequence[int], patches: Sequence[Patch]) -> Iterator[list[int]]:
        """Patches that begin at one layer, in passes of a size that memory allows."""
        most = min(_LONGEST, max(1, _MOST // self._base.rows))
        chosen: list[int] = []
        count = 0
        for i in sorted(indices, key=lambda i: self._first(patches[i])):
            more = self._base.tokens - self._first(patches[i])
            if chosen and count + more > most:
                yield chosen
                chosen, count = [], 0
            chosen.append(i)
            count += more
        if chosen:
            yield chosen

    def _pass(self, entry: int, patches: Sequence[Patch]) -> torch.Tensor:
        """[patches, rows, metrics] of patches that begin at one layer."""
        packing = self._packed(patches)
        rows, base, device = self._base.rows, self._base, input_device(self._model)
        position = packing.position.to(device)
        ends = (torch.arange(rows).unsqueeze(1) * packing.count + packing.lasts).flatten()
        inputs: dict[str, Any] = {"input_ids": base.ids[:, position]}
        noise = None if base.noise is None else base.noise[:, position]
        hidden = base.inputs[entry][:, position]
        if self._way == "packed":
            inputs |= {
                "attention_mask": packing.mask(self._model.dtype).expand(rows, -1, -1, -1).to(device),
                "position_ids": position.expand(rows, -1),
                "past_key_values": self._cache(),
                "use_cache": True,
            }
        else:
            # Of each row, every patch's whole text is a row of its own.
            inputs["input_ids"] = inputs["input_ids"].reshape(-1, base.tokens)
            inputs |= {"attention_mask": torch.ones_like(inputs["input_ids"]), "use_cache": False}
        with contextlib.ExitStack() as stack:
            hidden = self._put(stack, entry, packing, hidden)
            if self._way == "whole":
                shape = (*inputs["input_ids"].shape, -1)
                stack.enter_context(adding(self._model, None if noise is None else noise.reshape(shape)))
            else:
                entering = hidden.reshape(*inputs["input_ids"].shape, hidden.shape[-1])
                stack.enter_context(
                    beginning_at(self._anatomy, entry, entering, returns_tuple=base.returns_tuple)
                )
            logits = logits_at(self._model, ends, **inputs)
        self.computed += rows * packing.count * (self._anatomy.sizes.n_layers - entry)
        return self._score(logits).unflatten(0, (rows, len(patches))).transpose(0, 1)

    def _packed(self, patches: Sequence[Patch]) -> _Packing:
        firsts = tuple(self._first(patch) for patch in patches)
        starts, count = [], 0
        for first in firsts:
            starts.append(count)
            count += self._base.tokens - first
        return _Packing(tuple(patches), firsts, tuple(starts), count, self._base.tokens)

    def _put(
        self, stack: contextlib.ExitStack, entry: int, packing: _Packing, hidden: torch.Tensor
    ) -> torch.Tensor:
        """Have the states put in while the pass runs; those of what enters it are put in now."""
        by_place: dict[Place, list[int]] = {}
        for i, patch in enumerate(packing.patches):
            for layer in patch.layers:
                by_place.setdefault((patch.site, layer), []).append(i)
        for (site, layer), indices in by_place.items():
            change = self._change(site, layer, packing, indices)
            # Of the block before the first one, the output is what enters.
            if self._way != "whole" and site == "block_output" and layer < entry:
                hidden = change(hidden)
            else:
                stack.enter_context(at_site(self._anatomy, site, layer, change))
        return hidden

    def _change(
        self, site: Site, layer: int, packing: _Packing, indices: Sequence[int]
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Puts the source's states of one place into those patches' tokens."""
        own = self._base.states[site, layer]
        source = self._source[site, layer].expand_as(own)
        places, tokens, kept = [], [], []
        for i in indices:
            patch = packing.patches[i]
            columns = self._columns(patch)
            mask = torch.ones(own.shape[-1], dtype=torch.bool)
            if columns is not None:
                mask = torch.zeros_like(mask).index_fill(0, columns.cpu(), True)
            for token in patch.tokens:
                places.append(packing.starts[i] + token - packing.firsts[i])
                tokens.append(token)
                kept.append(mask)
        new, chosen = source[:, tokens], torch.stack(kept).to(own.device)

        def change(activation: torch.Tensor) -> torch.Tensor:
            flat = activation.reshape(own.shape[0], packing.count, -1).clone()
            flat[:, places] = torch.where(chosen.to(flat.device), new.to(flat), flat[:, places])
            return flat.reshape(activation.shape)

        return change

    def _columns(self, patch: Patch) -> torch.Tensor | None:
        if patch.heads is None:
            return None
        width = self._anatomy.sizes.head_dim
        places = [torch.arange(head * width, (head + 1) * width) for head in patch.heads]
        return torch.cat(places).to(input_device(self._model))

    def _cache(self) -> Cache:
        """The base's keys and values, for one pass that goes on from them."""
        if self._base.cache is None:
            raise RuntimeError("the base kept no keys and values")
        rows = torch.arange(self._base.rows)
        return Cache(
            layers=[Branch([Own(keys, values, rows)], self._base.tokens) for keys, values in self._base.cache]
        )


def why_not_packed(model: Any, base: KeptRun) -> str | None:
    """What speaks against packed passes before anything has been tried; None if nothing does."""
    if (reason := why_not_forked(model)) is not None:
        return reason
    if base.cache is None:
        return f"{type(model).__name__} does not keep the keys and values of all tokens"
    return why_not_in_one_row(model, base.tokens, "text")


__all__ = ["WAYS", "Patch", "PatchWay", "Patcher", "Score", "States", "why_not_packed"]
