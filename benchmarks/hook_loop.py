"""The rival of the sweeps: one generation per row with a forward hook, as the field's scripts do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from subvene.runner import IntervenedModel

TIE = 1e-3


def finish(model: Any, ids: torch.Tensor) -> list[int]:
    """A response up to its end."""
    tokens = ids.tolist()
    end = model.generation_config.eos_token_id
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def generate_one(
    model: Any, ids: Sequence[int], layer: int, shift: torch.Tensor, **generation: Any
) -> list[int]:
    """One response, `shift` added to the output of a block at the cursor and at what follows it."""
    cursor = len(ids) - 1

    def add(_module: object, _args: object, h: torch.Tensor) -> torch.Tensor:
        # Its own rule, for one unpadded row with a cache: the prompt pass edits the cursor only.
        edited = h.clone()
        edited[:, cursor if h.shape[1] > 1 else 0 :] += shift
        return edited

    handle = model.model.layers[layer].register_forward_hook(add)
    prompt = torch.tensor([list(ids)])
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), **generation)
    handle.remove()
    return finish(model, output[0, len(ids) :])


def check_tie(
    m: IntervenedModel, ids: Sequence[int], strengths: Any, one: list[int], other: list[int]
) -> None:
    """Where two greedy runs part, their candidates must have the same logit up to rounding."""
    pairs = zip([*one, None], [*other, None], strict=False)
    at = next(i for i, (a, b) in enumerate(pairs) if a != b)
    if at >= min(len(one), len(other)):
        raise SystemExit(f"{strengths}: one run goes on where the other ends, at token {at}")
    sequence = torch.tensor([[*ids, *one[:at]]])
    with torch.no_grad():
        logits = m(sequence, prompt_lengths=[len(ids)], strengths=strengths).logits[0, -1]
    gap = abs(float(logits[one[at]] - logits[other[at]]))
    if gap > TIE:
        raise SystemExit(f"{strengths}: the two runs differ at token {at} with a logit gap of {gap:.4f}")
