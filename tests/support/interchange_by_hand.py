"""Interchange as one would write it down: a whole pass a row, two plain hooks, arithmetic in NumPy.

Nothing here is subvene's: token ids are the tokenizer's, modules are named as `tracing_by_hand` names them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tracing_by_hand import module_of


def token_of(tokenizer: Any, text: str, ends_with: str) -> int:
    """The last token of a text's beginning: that of a name or a verb which the text has once."""
    end = text.index(ends_with) + len(ends_with)
    return len(tokenizer(text[:end])["input_ids"]) - 1


@torch.no_grad()
def answered_by_hand(model: Any, ids: Sequence[int], answers: Sequence[int]) -> int:
    """The likeliest of some answers behind a text."""
    logits = model(torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
    return answers[int(logits[list(answers)].argmax())]


@torch.no_grad()
def swapped_by_hand(
    model: Any,
    base: Sequence[int],
    token: int,
    other: torch.Tensor,
    layer: int,
    rotation: torch.Tensor | None,
    answers: Sequence[int],
) -> int:
    """The likeliest of some answers behind a base, a token of it being swapped at the output of a block.

    Args:
        model: a decoder.
        base: its token ids.
        token: of it, that is edited.
        other: what is put there, [width].
        layer: 0-based.
        rotation: [width, rank], orthonormal columns: what is swapped; None: the whole vector.
        answers: token ids.
    """

    def put(_module: Any, _args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        own = hidden[0, token].clone()
        change = other - own
        hidden[0, token] = own + (change if rotation is None else rotation @ (rotation.T @ change))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = module_of(model, "block_output", layer).register_forward_hook(put)
    try:
        return answered_by_hand(model, base, answers)
    finally:
        handle.remove()


def wilson_by_hand(right: Sequence[float]) -> tuple[float, float, float]:
    """Mean and Wilson's 95 % interval of a share."""
    n, z = len(right), 1.959963984540054
    p = sum(right) / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return p, max(0.0, middle - half), min(1.0, middle + half)


def difference_by_hand(left: Sequence[float], right: Sequence[float], seed: int = 1) -> tuple[float, ...]:
    """Mean of paired differences and its percentile bootstrap interval, 95 %."""
    gaps = np.asarray(left) - np.asarray(right)
    draws = np.random.default_rng(seed).integers(0, len(gaps), size=(20_000, len(gaps)))
    low, high = np.quantile(gaps[draws].mean(1), [0.025, 0.975])
    return float(gaps.mean()), float(low), float(high)
