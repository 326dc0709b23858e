"""The LoRA arm: peft's adapter, trained by the same loop, gone afterwards."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from architectures import BY_NAME
from tiny_preferences import examples_of, experiment

from subvene.runner.models.anatomy import Anatomy
from subvene.runner.training import lora
from subvene.runner.training.experiments import TrainingError
from subvene.runner.training.lora import trained_lora

EXAMPLES = examples_of(8, seed=4)
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def test_a_lora_is_the_free_weight_update_and_leaves_nothing_behind() -> None:
    model = BY_NAME["qwen3"].fresh()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one = experiment("lora", {}, EXAMPLES, shape={"rank": 2}, epochs=4, validation=None, warmup=0.0)
    outcomes = []
    for _ in range(2):
        with torch.no_grad():
            plain = model(IDS).logits
        with trained_lora(Anatomy.of(model), EXAMPLES, one, pad_id=0) as trained, torch.no_grad():
            adapted = model(IDS).logits
        outcomes.append((trained, adapted))
        assert {name for name, p in model.named_parameters() if p.requires_grad} == set(before)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        with torch.no_grad():
            torch.testing.assert_close(model(IDS).logits, plain)
    (trained, adapted), (again, _) = outcomes
    assert trained.losses == again.losses
    assert trained.losses[0] == pytest.approx(25.0, rel=1e-4)
    assert trained.losses[-1] < trained.losses[0]
    assert (adapted - plain).abs().max() > 0.05
    with torch.no_grad():
        for layer in range(2):
            a, b = (
                next(
                    value
                    for name, value in trained.factors.items()
                    if f"layers.{layer}." in name and part in name
                )
                for part in ("lora_A", "lora_B")
            )
            assert b.any()
            model.model.layers[layer].self_attn.o_proj.weight += b @ a
        torch.testing.assert_close(model(IDS).logits, adapted, rtol=1e-5, atol=1e-5)


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora.importlib.util, "find_spec", lambda name: None)
    assert importlib.util.find_spec("peft") is None
    one = experiment("lora", {}, EXAMPLES)
    anatomy = Anatomy.of(BY_NAME["llama"].shared())
    with (
        pytest.raises(TrainingError, match=r"pip install 'subvene\[train\]'"),
        trained_lora(anatomy, EXAMPLES, one, pad_id=0),
    ):
        pass
