"""Steering in bfloat16 on every architecture that is tested: scores, steps and plain hooks agree.

A step is held to a pass over the same tokens of what it is a step of: in bfloat16 other shapes round
otherwise, by as much as the untouched model's steps differ from its own passes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, LAYERS, WIDTH, Architecture
from torch import nn

from subvene.runner import IntervenedModel
from subvene.specs import InterventionSpec

LAYER, NEW = LAYERS - 1, 3
IDS = torch.tensor([[11, 12, 13, 14, 15, 16], [21, 22, 23, 24, 25, 26]])
# To 8 bits after the leading one, one rounding is at most 2**-9 of a number.
ROUNDING = 2**-9


@cache
def halved(arch: Architecture) -> nn.Module:
    return arch.fresh().to(torch.bfloat16)


def vector() -> torch.Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(7))


def steered(arch: Architecture) -> IntervenedModel:
    declared = {"kind": "steering", "layer": LAYER, "vector": {"key": "v"}, "positions": "response"}
    spec = InterventionSpec.model_validate(
        {
            "subvene": 1,
            "model": {"name": f"tiny/{arch.name}"},
            "interventions": [{**declared, "coefficient": 2.0}],
        }
    )
    tensors = {f"v.block_output[{LAYER}]": vector()}
    return IntervenedModel.from_spec(spec, model=halved(arch), tensors=tensors)


def by_hand(arch: Architecture, ids: torch.Tensor, first: int) -> torch.Tensor:
    """Logits of a pass with a hook that adds in float32 and rounds once, from token `first` on."""

    def hook(_: nn.Module, _args: Any, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        edited = h.clone()
        edited[:, first:] = (h[:, first:].float() + 2.0 * vector()).to(h.dtype)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    handle = halved(arch).get_submodule(arch.path("block_output", LAYER)).register_forward_hook(hook)
    try:
        return halved(arch)(ids).logits
    finally:
        handle.remove()


def step_logits(output: Any) -> torch.Tensor:
    return torch.stack(output.logits, 1)


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHITECTURES, ids=repr)
def test_scores_steps_and_plain_hooks_agree(arch: Architecture) -> None:
    m, model, count = steered(arch), halved(arch), IDS.shape[1]
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    written = m.generate_ids(IDS, **options)
    assert m.receipt[0].edited == {"prompt": 0, "cursor": 2, "response": 2 * (NEW - 1)}
    sequences, steps = written.sequences, step_logits(written)
    scored = m(sequences[:, :-1], prompt_lengths=[count, count]).logits
    assert scored.dtype == torch.bfloat16
    # The same shapes and one rounding: the same to the bit.
    assert torch.equal(scored, by_hand(arch, sequences[:, :-1], count - 1))
    plain = model.generate(IDS, **options)
    own = model(plain.sequences[:, :-1]).logits[:, count - 1 :]
    largest = scored.abs().max()
    spread = max(float((step_logits(plain).float() - own.float()).abs().max()), float(largest) * ROUNDING)
    assert float((steps.float() - scored[:, count - 1 :].float()).abs().max()) <= 4 * spread
    assert float((steps[:, 0] - model(IDS).logits[:, -1]).abs().max()) > 8 * spread
