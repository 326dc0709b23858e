"""What a run of one text leaves: the states at its sites, and all that is needed to go on from any layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers.cache_utils import DynamicCache

from subvene.runner.edits.hooks import on_input, on_output
from subvene.runner.models.anatomy import Anatomy, component_module
from subvene.runner.models.devices import input_device
from subvene.runner.models.forked_cache import FORKABLE
from subvene.runner.passes.restart import logits_at
from subvene.specs import Site

Place = tuple[Site, int]
"""A site and a layer."""
States = dict[Place, torch.Tensor]
"""By place, [rows, tokens, width of the site]."""


@dataclass(frozen=True)
class KeptRun:
    """A run of some rows of one length.

    Attributes:
        ids: Long[rows, tokens].
        noise: what was added to the embeddings, [rows, tokens, width]; None for nothing.
        inputs: by layer, what its block was given: [rows, tokens, width].
        states: what its sites held.
        cache: by layer, keys and values [rows, heads, tokens, head width]; None where the model keeps other
            things, or not those of all tokens.
        logits: of the last token, [rows, vocabulary].
        returns_tuple: whether the model's blocks return a tuple.
    """

    ids: torch.Tensor
    noise: torch.Tensor | None
    inputs: tuple[torch.Tensor, ...]
    states: States
    cache: tuple[tuple[torch.Tensor, torch.Tensor], ...] | None
    logits: torch.Tensor
    returns_tuple: bool

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.ids.shape[0]

    @property
    def tokens(self) -> int:
        """Of each row."""
        return self.ids.shape[1]


@torch.no_grad()
def keep(
    anatomy: Anatomy, ids: torch.Tensor, sites: Sequence[Site], noise: torch.Tensor | None = None
) -> KeptRun:
    """Run some rows of one length, without padding, and keep what is needed.

    Args:
        anatomy: of the model, which is in evaluation mode.
        ids: Long[rows, tokens].
        sites: whose states are kept.
        noise: added to what the embedding module gives, [rows, tokens, width].
    """
    model = cast(Any, anatomy.model)
    ids = ids.to(input_device(model))
    inputs: dict[int, torch.Tensor] = {}
    states: States = {}
    returns_tuple = False

    def see(_module: torch.nn.Module, _args: Any, output: Any) -> None:
        nonlocal returns_tuple
        returns_tuple = isinstance(output, tuple)

    def reads(layer: int) -> Callable[[torch.Tensor], None]:
        def keep(activation: torch.Tensor) -> None:
            inputs[layer] = activation.clone()

        return keep

    cache = cache_of(model)
    with contextlib.ExitStack() as stack:
        stack.enter_context(adding(model, noise))
        for layer, block in enumerate(anatomy.blocks):
            stack.callback(on_input(block, reads(layer)).remove)
        stack.callback(anatomy.blocks[0].register_forward_hook(see).remove)
        for site in sites:
            for layer in range(anatomy.sizes.n_layers):
                stack.enter_context(at_site(anatomy, site, layer, _taking(states, (site, layer), ids.shape)))
        last = torch.arange(1, ids.shape[0] + 1) * ids.shape[1] - 1
        options = {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}
        logits = logits_at(model, last, input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    return KeptRun(
        ids=ids,
        noise=noise,
        inputs=tuple(inputs[layer] for layer in range(anatomy.sizes.n_layers)),
        states=states,
        cache=_kept(cache, ids.shape[1]),
        logits=logits,
        returns_tuple=returns_tuple,
    )


@contextlib.contextmanager
def adding(model: Any, noise: torch.Tensor | None) -> Iterator[None]:
    """Within the block, `noise` is added to what the embedding module gives, [rows, tokens, width]."""
    if noise is None:
        yield
        return

    def add(_module: torch.nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + noise.to(output.device, output.dtype)

    handle = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def at_site(
    anatomy: Anatomy, site: Site, layer: int, change: Callable[[torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """Within the block, `change` is given the state at a site, and what it returns takes its place.

    Args:
        anatomy: of the model that is called within.
        site: one of DESIGN's sites.
        layer: 0-based.
        change: from the activation as the module has it; None leaves it as it is.
    """
    module, is_input = component_module(anatomy.model, anatomy.component(site, layer))
    handle = (on_input if is_input else on_output)(module, change)
    try:
        yield
    finally:
        handle.remove()


def _taking(states: States, place: Place, shape: torch.Size) -> Callable[[torch.Tensor], None]:
    def take(activation: torch.Tensor) -> None:
        states[place] = activation.reshape(*shape, -1).clone()

    return take


def cache_of(model: Any) -> DynamicCache | None:
    """An empty cache for a model that keeps keys and values and nothing else; None for others."""
    try:
        cache = DynamicCache(config=model.config)
    except (KeyError, AttributeError, ValueError):
        return None
    return cache if all(type(layer) in FORKABLE for layer in cache.layers) else None


def _kept(cache: DynamicCache | None, tokens: int) -> tuple[tuple[torch.Tensor, torch.Tensor], ...] | None:
    """The keys and values of all tokens; None where a layer has not filled its own, or forgot some."""
    if cache is None:
        return None
    layers: list[Any] = list(cache.layers)  # of FORKABLE kinds, which hold keys and values
    whole = [
        (layer.keys, layer.values)
        for layer in layers
        if layer.is_initialized and layer.keys.ndim == 4 and layer.keys.shape[2] == tokens
    ]
    return tuple(whole) if whole and len(whole) == len(layers) else None
