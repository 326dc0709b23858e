"""A tiny model with specs that read from sources, and the same swap by plain torch hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from subvene.runner.intervened.model import IntervenedModel


def spec_of(sources: Mapping[str, Any], *interventions: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "subvene": 1,
        "model": {"name": "tiny"},
        "sources": dict(sources),
        "interventions": [{"kind": "pyvene", **one} for one in interventions],
    }


def swap(layer: int = 1, name: str = "swap", **fields: Any) -> dict[str, Any]:
    default = {"class": "VanillaIntervention", "site": "block_output", "source": {"from": "other"}}
    return {**default, "name": name, "layer": layer, "positions": {"last": 1}, **fields}


def make(model: Any, tokenizer: Any, sources: Mapping[str, Any], *interventions: Any) -> IntervenedModel:
    return IntervenedModel.from_spec(spec_of(sources, *interventions), model=model, tokenizer=tokenizer)


@torch.no_grad()
def output_of(model: Any, module: torch.nn.Module, ids: Sequence[int]) -> torch.Tensor:
    """A module's output [tokens, width] for one text, without padding."""
    kept: list[torch.Tensor] = []
    handle = module.register_forward_hook(
        lambda _m, _a, out: kept.append(out if torch.is_tensor(out) else out[0])
    )
    try:
        model(torch.tensor([list(ids)]))
    finally:
        handle.remove()
    return kept[0][0]


@contextlib.contextmanager
def written(module: torch.nn.Module, values: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Put vectors at positions of a module's output, in calls of one row that carry them."""

    def hook(_module: Any, _args: Any, out: Any) -> Any:
        h = (out if torch.is_tensor(out) else out[0]).clone()
        for position, value in values.items():
            if position < h.shape[1] and h.shape[1] > 1:
                h[0, position] = value
        return h if torch.is_tensor(out) else (h, *out[1:])

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
