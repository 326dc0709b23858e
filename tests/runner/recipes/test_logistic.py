"""The recipe `logistic`: the weights at which the gradient of the penalised likelihood is zero, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contrast_by_hand import PAIRS, TEXTS, instruction, last_tokens, of_words

from subvene.runner import fit
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes.logistic import fit_logistic
from subvene.specs import LogisticSpec, SubveneError, resolve_pairs

PROMPTS = {"positive": ["how are you", "hello world", "tell me"], "negative": ["rain", "sad day"]}


def fitted(loaded: Any, **fields: Any) -> Any:
    spec = LogisticSpec.model_validate({"key": "x", "pairs": TEXTS, **fields})
    return fit_logistic(spec, resolve_pairs(spec.pairs, "."), Anatomy.of(loaded[0]), loaded[1])


def by_newton(rows: torch.Tensor, labels: torch.Tensor, c: float, *, intercept: bool) -> torch.Tensor:
    """Minimise ‖w‖²/2 + C·Σ log(1 + exp(−y·(⟨w, x⟩ + b))) by Newton's steps, and scale w to unit length."""
    x = torch.cat([rows, torch.ones(len(rows), 1)], 1) if intercept else rows
    penalty = torch.ones(x.shape[1], dtype=torch.float64)
    penalty[rows.shape[1] :] = 0
    w = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(50):
        p = torch.sigmoid(x @ w)
        gradient = penalty * w + c * x.T @ (p - labels)
        hessian = torch.diag(penalty) + c * x.T @ ((p * (1 - p))[:, None] * x)
        w = w - torch.linalg.solve(hessian, gradient)
    assert gradient.abs().max() < 1e-8
    direction = w[: rows.shape[1]]
    return direction / direction.norm()


@pytest.mark.parametrize("center", ["pairs", "none"])
@pytest.mark.parametrize("c", [1.0, 0.1])
def test_it_is_the_probe_s_direction(loaded: Any, center: str, c: float) -> None:
    found = fitted(loaded, center=center, inverse_penalty=c)
    for layer in range(3):
        positive, negative = last_tokens(loaded, layer)
        mean = (positive + negative) / 2 if center == "pairs" else torch.zeros_like(positive)
        rows = torch.cat([positive - mean, negative - mean])
        labels = torch.tensor([1.0] * len(PAIRS) + [0.0] * len(PAIRS), dtype=torch.float64)
        expected = by_newton(rows, labels, c, intercept=center == "none")
        assert (found.tensors[f"x.block_output[{layer}]"] - expected).abs().max() < 5e-3
        assert found.provenance["own_accuracy_by_layer"][str(layer)] == 1.0


def test_two_lists_of_prompts_are_probed_at_the_cursor(loaded: Any) -> None:
    found = fitted(loaded, pairs={"prompts": PROMPTS}, center="none")
    rows = [of_words(loaded, instruction(text), 1)[-1] for side in PROMPTS.values() for text in side]
    labels = torch.tensor([1.0, 1, 1, 0, 0], dtype=torch.float64)
    expected = by_newton(torch.stack(rows), labels, 1.0, intercept=True)
    assert (found.tensors["x.block_output[1]"] - expected).abs().max() < 5e-3
    assert {name: found.provenance[name] for name in ("form", "positive", "negative")} == {
        "form": "prompts",
        "positive": 3,
        "negative": 2,
    }


def test_by_name(loaded: Any) -> None:
    m = fit("logistic", *loaded, pairs=PAIRS, layer=1, coefficient=2.0)
    assert torch.equal(m.tensors["logistic.block_output[1]"], fitted(loaded).tensors["x.block_output[1]"])


def test_lists_are_not_centred_by_pairs(loaded: Any) -> None:
    with pytest.raises(SubveneError, match="not paired; `center: none` takes them"):
        fit("logistic", *loaded, pairs={"prompts": PROMPTS}, layer=1, coefficient=1.0)


def test_a_layer_without_a_difference_is_left_out(loaded: Any) -> None:
    for module in (loaded[0].model.layers[0].self_attn.o_proj, loaded[0].model.layers[0].mlp.down_proj):
        module.weight.data[:] = 0
    texts = [{"positive": "i am glad .", "negative": "it is sad and bad ."}]
    found = fitted(loaded, pairs={"texts": texts})
    assert "zero, up to rounding" in found.provenance["left_out"]["0"]
    assert len(found.tensors) == 2
