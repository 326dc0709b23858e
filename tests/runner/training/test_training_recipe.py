"""pyvene's published training recipe on our IntervenableModel: it trains the edit, and the edit alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch

from subvene.runner.intervened.model import IntervenedModel

BASE = torch.tensor([[1, 5, 9, 13, 17, 21], [1, 7, 11, 15, 19, 23]])
LABELS = torch.tensor([[3], [4]])
LENGTHS = torch.tensor([6, 6])
PLACE = {"site": "block_output", "layer": 1}
ENTRIES: dict[str, dict[str, Any]] = {
    "rotated": {"class": "RotatedSpaceIntervention", "subspaces": [0, 1, 2, 3]},
    "boundless": {"class": "BoundlessRotatedSpaceIntervention"},
    "low_rank": {"class": "LowRankRotatedSpaceIntervention", "low_rank_dimension": 4},
    "mask": {"class": "SigmoidMaskIntervention"},
    "autoencoder": {"class": "AutoencoderIntervention", "latent_dim": 8},
}
LOW_RANK_EDIT = {"kind": "low_rank_edit", "name": "edit", "layer": 1, "write_heads": [0, 2], "rank": 2}


def entry(name: str) -> dict[str, Any]:
    common = {"kind": "pyvene", "name": "edit", "source": {"key": "v"}, "positions": {"indices": [-1]}}
    return LOW_RANK_EDIT if name == "low_rank_edit" else common | PLACE | ENTRIES[name]


def digests(model: Any) -> dict[str, tuple[torch.Tensor, bool]]:
    return {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("name", [*ENTRIES, "low_rank_edit"])
def test_the_recipe_trains_the_edit_and_leaves_the_model(name: str, freeze: bool, tmp_path: Path) -> None:
    model = oracle.tiny("llama").requires_grad_(not freeze)
    m = oracle.intervened(model, entry(name))
    before, modes = digests(model), [module.training for module in model.modules()]
    edits_before = copy.deepcopy(m.intervenable.interventions.state_dict())
    # As in pyvene's own tutorials and `train_alignment`.
    intervenable = m.intervenable
    optimizer = torch.optim.Adam([{"params": intervenable.get_trainable_parameters()}], lr=0.05)
    intervenable.train()
    losses = []
    for _ in range(4):
        _, counterfactual = intervenable({"input_ids": BASE}, prompt_lengths=LENGTHS)
        loss = torch.nn.functional.cross_entropy(counterfactual.logits[:, -1], LABELS[:, 0])
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        intervenable.set_zero_grad()
    intervenable.eval()
    assert losses[-1] < losses[0]
    assert [module.training for module in model.modules()] == modes
    for parameter, (value, required) in before.items():
        now = model.get_parameter(parameter)
        assert torch.equal(now, value), parameter
        assert now.requires_grad == required
    edits = intervenable.interventions.state_dict()
    assert any(not torch.equal(edits[key], value) for key, value in edits_before.items())
    m.save_pretrained(tmp_path / "edit")
    again = IntervenedModel.from_pretrained(tmp_path / "edit", model=oracle.tiny("llama"))
    with torch.no_grad():
        trained = m(BASE, prompt_lengths=LENGTHS).logits
        torch.testing.assert_close(again(BASE, prompt_lengths=LENGTHS).logits, trained, rtol=0, atol=1e-6)
        with m.disabled():
            assert not torch.allclose(m(BASE).logits, trained)


def test_parameters_are_those_of_the_edits() -> None:
    model = oracle.tiny("llama")
    m = oracle.intervened(model, entry("boundless"), LOW_RANK_EDIT | {"name": "second"})
    intervenable = m.intervenable
    own = {id(p) for edit in intervenable.interventions.values() for p in edit.parameters()}
    assert {id(p) for p in intervenable.parameters()} == own
    assert {id(p) for _, p in intervenable.named_parameters()} == own
    first, second = intervenable.sorted_keys
    names = [name for name, _ in intervenable.named_parameters()]
    assert f"{second}.a" in names
    assert f"{first}.inner.intervention_boundaries" in names
    assert [n for n, _ in intervenable.named_parameters("p")] == [f"p.{name}" for name in names]
    trainable = [p for p in intervenable.parameters() if p.requires_grad]
    assert all(a is b for a, b in zip(intervenable.get_trainable_parameters(), trainable, strict=True))
    # A boundless subspace also keeps its population, which no gradient reaches.
    assert len(trainable) == len(own) - 1
    count = sum(p.numel() for p in trainable)
    assert intervenable.count_parameters() == count
    assert intervenable.count_parameters(include_model=True) == count + sum(
        p.numel() for p in model.parameters()
    )


def test_modes_and_gradients_of_the_model_are_its_callers() -> None:
    model = oracle.tiny("llama")
    model.train()
    m = oracle.intervened(model, entry("low_rank"))
    assert m.intervenable.eval() is m.intervenable
    assert model.training
    assert not m.intervenable.interventions.training
    m.intervenable.requires_grad_(False)
    assert all(p.requires_grad for p in model.parameters())
    assert m.intervenable.get_trainable_parameters() == []
    m.intervenable.requires_grad_(True)
    assert m.intervenable.train().training
    m.intervenable.to(torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert any(name.startswith("model.") for name in m.intervenable.state_dict())
