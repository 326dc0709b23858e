"""Passes that begin at a layer: what lies below is not computed again, what reaches the layer was kept.

The blocks below pass on what they get. The model's own forward runs around them, so masks, positions, the
last norm and the head stay its own affair.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from subvene.runner.edits.hooks import on_input
from subvene.runner.models.anatomy import Anatomy


@contextlib.contextmanager
def beginning_at(
    anatomy: Anatomy, layer: int, hidden: torch.Tensor, *, returns_tuple: bool
) -> Iterator[None]:
    """Within the block, layers below `layer` pass on what they get, and `layer` gets `hidden`.

    Args:
        anatomy: of the model that is called within.
        layer: 0-based.
        hidden: what reaches it, [rows, tokens, width] of the call.
        returns_tuple: whether this model's blocks return a tuple.
    """

    def pass_on(hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states, None) if returns_tuple else hidden_states

    def enter(own: torch.Tensor) -> torch.Tensor:
        return hidden.to(own.device)

    skipped: list[Any] = list(anatomy.blocks[:layer])
    # Another library may have put a forward of its own on an instance, as accelerate's offloading does.
    before = [block.__dict__.get("forward") for block in skipped]
    handle = on_input(anatomy.blocks[layer], enter)
    try:
        for block in skipped:
            block.forward = pass_on
        yield
    finally:
        handle.remove()
        for block, own in zip(skipped, before, strict=True):
            if own is None:
                del block.forward
            else:
                block.forward = own


def logits_at(model: Any, tokens: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """The logits of some tokens of a call: the head sees these alone.

    Args:
        model: a causal language model.
        tokens: Long[n], places in the flattened batch.
        **inputs: of the call.

    Returns:
        [n, vocabulary].
    """
    head = model.get_output_embeddings()
    selected = False

    def select(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal selected
        selected = True
        return hidden.reshape(-1, hidden.shape[-1])[tokens.to(hidden.device)].unsqueeze(0)

    handle = None if head is None else on_input(head, select)
    try:
        logits: torch.Tensor = model(**inputs).logits
    finally:
        if handle is not None:
            handle.remove()
    return logits[0] if selected else logits.flatten(0, 1)[tokens.to(logits.device)]
