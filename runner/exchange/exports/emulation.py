"""A consumer that is not installed with subvene: its arithmetic on the model that is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from subvene.runner.edits.hooks import on_input, on_output
from subvene.runner.models.anatomy import component_module


@contextlib.contextmanager
def adding(model: torch.nn.Module, additions: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Within the block, a constant is added at every token to each of these components.

    Args:
        model: the model; nothing of it is changed.
        additions: pyvene component (`model.layers[3].output`) → vector of the component's width.
    """
    handles: list[Any] = []
    try:
        for component, vector in additions.items():
            module, is_input = component_module(model, component)
            handles.append(_attach(module, vector, is_input=is_input))
        yield
    finally:
        for handle in handles:
            handle.remove()


def added_logits(
    model: torch.nn.Module, additions: Mapping[str, torch.Tensor]
) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """For `Consumer.logits`: the model's logits with these constants added, wherever the prompt ends."""

    @torch.no_grad()
    def logits(ids: torch.Tensor, _prompt_length: int) -> torch.Tensor:
        with adding(model, additions):
            found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
            return found

    return logits


def _attach(module: torch.nn.Module, vector: torch.Tensor, *, is_input: bool) -> Any:
    return (on_input if is_input else on_output)(module, lambda h: h + vector.to(h))
