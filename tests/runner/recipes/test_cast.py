"""The recipe `cast`: vectors, readings and the search for a threshold redone as loops."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from contrast_by_hand import instruction, of_words

from subvene.runner import fit
from subvene.runner.edits.compile import CompileError
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes.cast import chosen_threshold, fit_cast
from subvene.specs import CastSpec, SubveneError

GLAD = ["i am very happy", "the sun is good", "glad and happy", "tell me a good day", "a good and happy day"]
SAD = ["i am very gloomy", "the rain is bad", "sad and gloomy", "tell me a bad day"]
PROMPTS = {"prompts": {"positive": GLAD, "negative": SAD}}


def fitted(loaded: Any, **fields: Any) -> Any:
    spec = CastSpec.model_validate({"key": "glad", "pairs": PROMPTS, **fields})
    return fit_cast(spec, spec.pairs, Anatomy.of(loaded[0]), loaded[1], seed=3)


def means(loaded: Any, prompts: list[str], layer: int) -> torch.Tensor:
    return torch.stack([of_words(loaded, instruction(p), layer)[1:].mean(0) for p in prompts])


def reading(h: torch.Tensor, c: torch.Tensor) -> float:
    """As `leash_layer.py` has it: the projector as a matrix, tanh, cosine."""
    projector = torch.outer(c, c) / c.dot(c)
    other = torch.tanh(projector @ h)
    return float(h @ other / (h.norm() * other.norm()))


def f1_of(positive: list[float], negative: list[float], threshold: float, side: str) -> float:
    def is_open(value: float) -> bool:
        return value > threshold if side == "above" else value < threshold

    hits = sum(map(is_open, positive))
    missed, false = len(positive) - hits, sum(map(is_open, negative))
    return 2 * hits / (2 * hits + missed + false)


def test_it_is_the_condition_point_of_loops(loaded: Any) -> None:
    found = fitted(loaded)
    told = found.provenance
    layer = told["layer"]
    # The vector: the first principal axis of the texts that are not held out, about the mean of the means.
    n_held = round(len(GLAD) * 0.5), round(len(SAD) * 0.5)
    assert told["texts_held_out"] == list(n_held)
    order = [torch.randperm(n, generator=torch.Generator().manual_seed(3)) for n in (len(GLAD), len(SAD))]
    every = {}
    for at in range(3):
        sides = means(loaded, GLAD, at), means(loaded, SAD, at)
        used = [side[o[h:]] for side, o, h in zip(sides, order, n_held, strict=True)]
        held = [side[o[:h]] for side, o, h in zip(sides, order, n_held, strict=True)]
        rows = torch.cat(used) - (used[0].mean(0) + used[1].mean(0)) / 2
        rows = rows - rows.mean(0)
        axis = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -1]
        axis = axis if axis @ (used[0].mean(0) - used[1].mean(0)) > 0 else -axis
        values = [[reading(h, axis) for h in side] for side in held]
        levels = sorted({*values[0], *values[1]})
        middles = [(a + b) / 2 for a, b in pairwise(levels)]
        best = max(f1_of(*values, t, side) for t in middles for side in ("above", "below"))
        every[at] = axis, values, best
    assert told["f1_by_layer"] == {str(at): round(best, 4) for at, (_, _, best) in every.items()}
    axis, values, best = every[layer]
    assert best == max(one[2] for one in every.values())
    assert (found.tensors[f"glad.block_output[{layer}]"] - axis).abs().max() < 1e-4
    threshold = float(found.tensors[f"glad.block_output[{layer}].cast_mean_threshold"])
    side = "above" if found.tensors[f"glad.block_output[{layer}].cast_mean_side"] > 0 else "below"
    assert (threshold, side) == (pytest.approx(told["threshold"]), told["side"])
    assert f1_of(*values, threshold, side) == pytest.approx(best)


@pytest.mark.parametrize("measure", ["cast", "cosine", "projection"])
@pytest.mark.parametrize("tokens", ["mean", "last"])
@pytest.mark.parametrize("direction", ["pca", "mean_difference"])
def test_a_gate_opens_as_the_fit_said(loaded: Any, measure: str, tokens: str, direction: str) -> None:
    """The held-out prompts through the whole model: the gate of the fit has the F1 that was told."""
    model, tokenizer = loaded
    told = {"measure": measure, "tokens": tokens}
    when = told | {"vector": {"key": "glad"}}
    steer = {"kind": "scaling", "site": "block_output", "layer": 2, "gain": 2.0, "neurons": [0]}
    m = fit(
        "cast",
        model,
        tokenizer,
        pairs=PROMPTS,
        key="glad",
        direction=direction,
        **told,
        layers=[0, 1, 2],
        interventions=[steer | {"when": when, "positions": "response"}],
        seed=3,
    )
    at = []
    for prompts in (GLAD, SAD):
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(3))
        opened = 0
        for i in order[: round(len(prompts) * 0.5)].tolist():
            m.generate(prompts[i], max_new_tokens=1)
            opened += m.receipt[0].gate.rows_opened
        at.append((opened, round(len(prompts) * 0.5)))
    (hits, n), (false, _) = at
    assert round(2 * hits / (n + hits + false), 4) == m.provenance["f1_held_out"]


def test_the_widest_gap_is_taken_where_several_are_as_good() -> None:
    choice = chosen_threshold(torch.tensor([5.0, 6.0]), torch.tensor([1.0, 2.0]))
    assert choice is not None
    assert (choice.f1, choice.threshold, choice.side) == (1.0, 3.5, "above")
    turned = chosen_threshold(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 6.0]))
    assert turned is not None
    assert (turned.f1, turned.threshold, turned.side) == (1.0, 3.5, "below")
    assert chosen_threshold(torch.ones(2), torch.ones(2)) is None


def test_what_cannot_be_fitted_is_refused_before_a_model_is_asked(loaded: Any) -> None:
    model, tokenizer = loaded
    steer = {"kind": "scaling", "site": "block_output", "layer": 0, "gain": 2.0, "neurons": [0]}
    when = {"measure": "cast", "vector": {"key": "glad"}, "tokens": "mean"}
    common = {"pairs": PROMPTS, "key": "glad"}
    with pytest.raises(CompileError, match=r"`fit:` may choose block_output\[1\], which the model computes"):
        fit("cast", model, tokenizer, **common, interventions=[steer | {"when": when}])
    used = {"kind": "steering", "layer": 2, "vector": {"key": "glad"}, "coefficient": 1.0}
    with pytest.raises(CompileError, match=r"gives tensors for a gate \(`when:`\), found steering"):
        fit("cast", model, tokenizer, **common, interventions=[used])
    few = {"pairs": {"prompts": {"positive": GLAD[:1], "negative": SAD}}, "key": "glad"}
    with pytest.raises(SubveneError, match="at least two positive texts"):
        fit("cast", model, tokenizer, **few, interventions=[steer | {"layer": 2, "when": when}])
    other = when | {"measure": "cosine"}
    with pytest.raises(CompileError, match="cosine_mean_threshold"):
        fit("cast", model, tokenizer, **common, interventions=[steer | {"layer": 2, "when": other}])
