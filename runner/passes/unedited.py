"""Texts that are run once, unedited: states at a site, what reaches a layer, keys and values, answers.

Rows are padded on the right, where no token of a causal model looks. A text that stands in several rows is
run once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from subvene.runner.data.text import pad
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.devices import input_device
from subvene.runner.passes.kept import at_site, cache_of
from subvene.runner.passes.restart import logits_at
from subvene.specs import Site

KeysValues = tuple[torch.Tensor, torch.Tensor]
"""Of a layer, [texts, heads, slots, head width] each."""
# What is kept of keys and values, and of states at a time.
_KEPT_BYTES = 2**30


@dataclass(frozen=True)
class Answered:
    """What texts go on with.

    Attributes:
        likeliest: Long[texts], of all tokens.
        among: Long[texts], of the answers.
    """

    likeliest: torch.Tensor
    among: torch.Tensor


@dataclass(frozen=True)
class Kept:
    """What a run of all texts leaves.

    Attributes:
        states: by layer, what the site holds, [texts, slots, width].
        inputs: by layer, what reaches its block, [texts, slots, width].
        cache: by layer, keys and values; None where the model keeps other things, or they take too much room.
    """

    states: Mapping[int, torch.Tensor]
    inputs: Mapping[int, torch.Tensor]
    cache: tuple[KeysValues, ...] | None


class UneditedTexts:
    """Texts and their runs.

    Args:
        anatomy: of the model, which is in evaluation mode.
        texts: token ids of each.
        answers: Long[answers], the tokens among which the likeliest is looked for; None: all.
        pad_id: any token id.
        pass_tokens: most tokens of a pass, padding included.

    Attributes:
        lengths: Long[texts], tokens of each.
        returns_tuple: whether the model's blocks return a tuple; known when the texts have run.
        passes: how often the texts have been run.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        texts: Sequence[Sequence[int]],
        answers: torch.Tensor | None,
        *,
        pad_id: int,
        pass_tokens: int,
    ) -> None:
        self.anatomy, self._answers, self._pass_tokens = anatomy, answers, pass_tokens
        self.model = cast(Any, anatomy.model)
        batch = pad(texts, [len(text) for text in texts], pad_id, "right").to(input_device(self.model))
        self.ids, self.mask = batch.input_ids, batch.attention_mask
        self.lengths = self.mask.sum(1)
        self.returns_tuple, self.passes = False, 0
        self._answered: Answered | None = None

    @property
    def answered(self) -> Answered:
        """What they go on with."""
        if self._answered is None:
            self.run("block_output", [], [])
        if self._answered is None:
            raise RuntimeError("the texts have not been run")
        return self._answered

    def at_a_time(self, width: int) -> int:
        """How many layers are kept at a time, whose states are that wide."""
        each = 2 * self.ids.numel() * max(width, self.anatomy.sizes.width)
        return max(1, _KEPT_BYTES // (each * self.model.dtype.itemsize))

    @torch.no_grad()
    def run(self, site: Site, layers: Sequence[int], entries: Sequence[int]) -> Kept:
        """Run all texts.

        Args:
            site: whose states are kept.
            layers: at these.
            entries: blocks whose input is kept.
        """
        inputs: dict[int, list[torch.Tensor]] = {entry: [] for entry in entries}
        states: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
        likeliest, among, caches = [], [], []
        with contextlib.ExitStack() as stack:
            for entry, kept in inputs.items():
                block = self.anatomy.blocks[entry]
                stack.callback(block.register_forward_pre_hook(_entering(kept), with_kwargs=True).remove)
            for layer, kept in states.items():
                stack.enter_context(at_site(self.anatomy, site, layer, _taking(kept)))
            stack.callback(self.anatomy.blocks[0].register_forward_hook(self._see).remove)
            for ids, mask in zip(*(t.split(self._rows_of_pass) for t in (self.ids, self.mask)), strict=True):
                cache = cache_of(self.model) if entries else None
                ends = torch.arange(len(ids), device=ids.device) * ids.shape[1] + mask.sum(1) - 1
                options = {"use_cache": False} if cache is None else {"past_key_values": cache}
                logits = logits_at(self.model, ends, input_ids=ids, attention_mask=mask, **options)
                likeliest.append(logits.argmax(-1))
                among.append(self._among(logits))
                caches.append(None if cache is None else self._keys_values(cache))
        self.passes += 1
        self._answered = Answered(torch.cat(likeliest), torch.cat(among))
        return Kept(
            {layer: torch.cat(kept) for layer, kept in states.items()},
            {entry: torch.cat(kept) for entry, kept in inputs.items()},
            _joined(caches),
        )

    @property
    def _rows_of_pass(self) -> int:
        return max(1, self._pass_tokens // self.ids.shape[1])

    def _among(self, logits: torch.Tensor) -> torch.Tensor:
        if self._answers is None:
            return logits.argmax(-1)
        return self._answers[logits[:, self._answers].argmax(-1)]

    def _keys_values(self, cache: Any) -> tuple[KeysValues, ...] | None:
        """Those of all tokens; None where a layer has not filled its own, or forgot some, or is too large."""
        slots = self.ids.shape[1]
        if any(not layer.is_initialized or layer.keys.shape[2] != slots for layer in cache.layers):
            return None
        found = tuple((layer.keys, layer.values) for layer in cache.layers)
        count = sum(one.numel() * one.element_size() for pair in found for one in pair)
        return found if count * len(self.ids) <= _KEPT_BYTES * len(found[0][0]) else None

    def _see(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        self.returns_tuple = isinstance(output, tuple)


def _joined(caches: Sequence[tuple[KeysValues, ...] | None]) -> tuple[KeysValues, ...] | None:
    whole = [cache for cache in caches if cache is not None]
    if len(whole) < len(caches) or not whole:
        return None
    return tuple(
        (torch.cat([keys for keys, _ in layer]), torch.cat([values for _, values in layer]))
        for layer in zip(*whole, strict=True)
    )


def _entering(kept: list[torch.Tensor]) -> Callable[..., None]:
    def hook(_module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        kept.append((args[0] if args else kwargs["hidden_states"]).clone())

    return hook


def _taking(kept: list[torch.Tensor]) -> Callable[[torch.Tensor], None]:
    def take(activation: torch.Tensor) -> None:
        kept.append(activation.clone())

    return take
