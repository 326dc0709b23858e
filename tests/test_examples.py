"""The examples do on the real model what their comments say; `quickstart.yaml` is run by tests/runner/cli."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from subvene.runner import fit

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
def test_formal_caps_the_projection_from_below(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    m = fit(EXAMPLES / "formal.yaml", model=model, tokenizer=tokenizer)
    prompts = ["How do I cook rice?"] * 2
    baseline, capped = m.generate(prompts, strengths=[0.0, 1.0], max_new_tokens=24, do_sample=False)
    assert capped != baseline
    assert m.receipt is not None
    receipt = m.receipt["formal"]
    assert receipt.rows_edited == 1
    assert receipt.changed > 0
    with m.disabled():
        assert m.generate(prompts[:1], max_new_tokens=24, do_sample=False) == [baseline]

    # What the next block receives, seen by a hook of our own, is nowhere below the floor of the spec.
    declared = m.spec.interventions[0]
    direction = m.tensors[f"formal.block_output[{declared.layer}]"]
    seen: list[torch.Tensor] = []
    block = model.model.layers[declared.layer + 1]
    handle = block.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            m(torch.tensor([tokenizer(capped)["input_ids"]]), prompt_lengths=[1])
    finally:
        handle.remove()
    projections = seen[0][0] @ (direction / direction.norm())
    assert projections.min() >= declared.min - 1e-2
