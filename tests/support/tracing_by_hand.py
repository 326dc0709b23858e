"""Causal tracing and patching as one would write them down: a whole pass a cell, one row, plain hooks.

Nothing here is subvene's: the modules are named as each architecture's source has them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

_PARTS = {
    "llama": ("model.layers", "self_attn", "mlp", "self_attn.o_proj"),
    "gpt2": ("transformer.h", "attn", "mlp", "attn.c_proj"),
    "gpt_neox": ("gpt_neox.layers", "attention", "mlp", "attention.dense"),
}


def module_of(model: Any, site: str, layer: int) -> nn.Module:
    """The module that a site is the output of, or the input (`attention_heads`)."""
    blocks, attention, mlp, projection = _PARTS[model.config.model_type]
    block = model.get_submodule(f"{blocks}.{layer}")
    path = {"attention_output": attention, "mlp_output": mlp, "attention_heads": projection}.get(site)
    return block if path is None else block.get_submodule(path)


@contextlib.contextmanager
def _noisy(model: Any, noise: torch.Tensor | None) -> Iterator[None]:
    def add(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output if noise is None else output + noise

    handle = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def states_by_hand(
    model: Any, ids: Sequence[int], sites: Sequence[str], noise: torch.Tensor | None = None
) -> dict[tuple[str, int], torch.Tensor]:
    """By site and layer, [tokens, width] of a run of one text."""
    found: dict[tuple[str, int], torch.Tensor] = {}
    handles = []
    for site in sites:
        for layer in range(model.config.num_hidden_layers):

            def hook(_m: Any, args: Any, output: Any, key: Any = (site, layer)) -> None:
                kept = args[0] if key[0] == "attention_heads" else output
                found[key] = (kept[0] if isinstance(kept, tuple) else kept)[0].clone()

            handles.append(module_of(model, site, layer).register_forward_hook(hook))
    with _noisy(model, noise):
        model(torch.tensor([list(ids)]), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def patched_by_hand(
    model: Any,
    ids: Sequence[int],
    source: Mapping[tuple[str, int], torch.Tensor],
    site: str,
    layers: Sequence[int],
    tokens: Sequence[int],
    *,
    columns: slice = slice(None),
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """log p over the vocabulary behind the last token, float64, with the source's states put in."""

    def put(state: torch.Tensor, layer: int) -> torch.Tensor:
        state = state.clone()
        for token in tokens:
            state[0, token, columns] = source[site, layer][token, columns]
        return state

    handles = []
    for layer in layers:

        def after(_m: Any, _args: Any, output: Any, layer: int = layer) -> Any:
            if isinstance(output, tuple):
                return (put(output[0], layer), *output[1:])
            return put(output, layer)

        def before(_m: Any, args: Any, layer: int = layer) -> Any:
            return (put(args[0], layer), *args[1:])

        module = module_of(model, site, layer)
        if site == "attention_heads":
            handles.append(module.register_forward_pre_hook(before))
        else:
            handles.append(module.register_forward_hook(after))
    with _noisy(model, noise):
        logits = model(torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    return logits.double().log_softmax(-1)
