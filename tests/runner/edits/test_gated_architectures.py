"""Gates and the sites within a block on every architecture: by hand, in scoring, in generation, reloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, LAYERS, WIDTH, Architecture
from kind_cases import draw

from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import InterventionSpec

LAYER = LAYERS - 1
# Rows of 6 and 4 tokens, padded on the left; prompts are the first 4 and 2 of them.
IDS = torch.tensor([[11, 12, 13, 14, 15, 16], [0, 0, 21, 22, 23, 24]])
MASK = (IDS != 0).long()
LENGTHS = [4, 2]
CURSORS = [3, 3]
"""Columns of the last tokens of the prompts."""
NEW = 3
V, C = draw(WIDTH, seed=3), draw(WIDTH, seed=4)
ENCODER = draw(1, WIDTH, seed=5) / WIDTH**0.5
SAE = {"key": "s", "architecture": "standard"}
TENSORS = {f"v.{site}[{LAYER}]": V for site in ("block_output", "mlp_output")} | {
    "c.block_output[0]": C,
    "s.block_output[0].encoder": ENCODER,
    "s.block_output[0].bias": torch.full((1,), 20.0),
    "s.block_output[0].shift": torch.zeros(WIDTH),
}
Reading = Callable[[torch.Tensor], torch.Tensor]
GATES: dict[str, tuple[dict[str, Any], Reading]] = {
    "projection": ({"measure": "projection", "vector": {"key": "c"}}, lambda h: h @ C / C.norm()),
    "probe": ({"measure": "probe", "vector": {"key": "c"}}, lambda h: torch.sigmoid(h @ C)),
    "sae_feature": (
        {"measure": "sae_feature", "sae": SAE, "feature": 5},
        lambda h: (h @ ENCODER[0] + 20).clamp_min(0),
    ),
}
every_architecture = pytest.mark.parametrize("arch", ARCHITECTURES, ids=repr)


def tensor_of(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def readings(arch: Architecture, read: Reading) -> torch.Tensor:
    """What is measured at every token of block 0, [rows, tokens]."""
    seen: list[torch.Tensor] = []
    block = arch.shared().get_submodule(arch.path("block_output", 0))
    handle = block.register_forward_hook(lambda _m, _a, output: seen.append(tensor_of(output).clone()))
    arch.shared()(IDS, attention_mask=MASK, position_ids=(MASK.cumsum(1) - 1).clamp_min(0))
    handle.remove()
    return read(seen[0].view(*IDS.shape, WIDTH))


@torch.no_grad()
def by_hand(arch: Architecture, opening: torch.Tensor) -> torch.Tensor:
    """Logits where 2·v is added as far as tokens are open, [rows, tokens]."""
    model = arch.shared()
    block = model.get_submodule(arch.path("block_output", LAYER))

    def hook(_m: Any, _a: Any, output: Any) -> Any:
        h = tensor_of(output)
        edited = h + (2.0 * opening.unsqueeze(-1) * V).view_as(h)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    handle = block.register_forward_hook(hook)
    logits = model(IDS, attention_mask=MASK, position_ids=(MASK.cumsum(1) - 1).clamp_min(0)).logits
    handle.remove()
    return logits


def spec_of(*interventions: dict[str, Any]) -> InterventionSpec:
    return InterventionSpec.model_validate(
        {"subvene": 1, "model": {"name": "tiny/x"}, "interventions": list(interventions)}
    )


def gated(arch: Architecture, when: dict[str, Any]) -> IntervenedModel:
    edit = {"kind": "steering", "layer": LAYER, "vector": {"key": "v"}, "coefficient": 2.0}
    spec = spec_of(edit | {"positions": "response", "when": when})
    return IntervenedModel.from_spec(spec, model=arch.shared(), tensors=TENSORS)


@torch.no_grad()
def scored(m: IntervenedModel, **turns: Any) -> torch.Tensor:
    return m(IDS, MASK, prompt_lengths=LENGTHS, **turns).logits[MASK.bool()]


def as_generated(m: IntervenedModel) -> None:
    """A teacher-forced pass over what was generated gives the logits of its steps."""
    options = {"max_new_tokens": NEW, "do_sample": False, "output_logits": True, "pad_token_id": 0}
    written = m.generate_ids(IDS, MASK, return_dict_in_generate=True, **options)
    mask = torch.cat([MASK, torch.ones(2, NEW, dtype=torch.long)], 1)
    with torch.no_grad():
        found = m(written.sequences, mask, prompt_lengths=MASK.sum(1).tolist()).logits
    steps = torch.stack(written.logits, 1)
    torch.testing.assert_close(found[:, -NEW - 1 : -1], steps, rtol=1e-4, atol=2e-5)


@every_architecture
@pytest.mark.parametrize("measure", GATES)
def test_a_gate_opens_where_its_reading_by_hand_does(arch: Architecture, measure: str, tmp_path: Any) -> None:
    fields, read = GATES[measure]
    values = readings(arch, read)
    response = (torch.arange(IDS.shape[1]) >= torch.tensor(CURSORS).unsqueeze(1)).float()
    at_cursors = values[[0, 1], CURSORS]
    # Between the two cursors: one row opens. Between two tokens of the response: some of them do.
    for decide, threshold in (
        ("once", float(at_cursors.mean())),
        ("token", float(values[response.bool()].median()) + 1e-4),
    ):
        when = fields | {"layer": 0, "above": threshold, "decide": decide}
        deciding = at_cursors.unsqueeze(1) if decide == "once" else values
        opening = response * (deciding > threshold)
        m = gated(arch, when)
        logits = scored(m)
        torch.testing.assert_close(logits, by_hand(arch, opening)[MASK.bool()], rtol=1e-4, atol=2e-5)
        receipt = m.receipt[0]
        assert receipt.tokens == int(opening.sum())
        assert receipt.gate is not None
        assert 0 < receipt.gate.tokens_opened < receipt.gate.tokens_asked == int(response.sum())
        as_generated(m)
        m.save_pretrained(tmp_path / decide)
        again = IntervenedModel.from_pretrained(tmp_path / decide, model=arch.shared())
        torch.testing.assert_close(scored(again), logits, rtol=0, atol=1e-6)
