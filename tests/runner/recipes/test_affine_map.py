"""The recipe `affine_map`: a line a column by loops over sorted values, a matrix by its normal equations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from contrast_by_hand import PAIRS, TEXTS, last_tokens

from subvene.runner import IntervenedModel, fit
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes.affine_map import fit_affine_map, map_of
from subvene.specs import AffineMapSpec, SubveneError, resolve_pairs


def spec_of(**fields: Any) -> AffineMapSpec:
    return AffineMapSpec.model_validate({"key": "x", "pairs": TEXTS, "tokens": "last", **fields})


def fitted(loaded: Any, **fields: Any) -> Any:
    spec = spec_of(**fields)
    return fit_affine_map(spec, resolve_pairs(spec.pairs, "."), Anatomy.of(loaded[0]), loaded[1])


def line(x: list[float], y: list[float], by: str) -> tuple[float, float]:
    """w and b of one column."""
    n, mean_x, mean_y = len(x), sum(x) / len(x), sum(y) / len(y)
    if by == "mean_act":
        return 1.0, mean_y - mean_x
    if by == "gaussian":
        spreads = [
            math.sqrt(sum((one - mean) ** 2 for one in side) / (n - 1))
            for side, mean in ((x, mean_x), (y, mean_y))
        ]
        w = spreads[1] / spreads[0]
    else:
        pairs = list(zip(sorted(x), sorted(y), strict=True))
        w = sum((a - mean_x) * (b - mean_y) for a, b in pairs) / sum((a - mean_x) ** 2 for a in x)
    return w, mean_y - w * mean_x


@pytest.mark.parametrize("by", ["linear_act", "mean_act", "gaussian"])
def test_of_every_column_it_is_the_published_line(loaded: Any, by: str) -> None:
    found = fitted(loaded, by=by)
    for layer in range(3):
        positive, negative = last_tokens(loaded, layer)
        weight, bias = (found.tensors[f"x.block_output[{layer}].{part}"] for part in ("weight", "bias"))
        expected = torch.tensor(
            [line(x.tolist(), y.tolist(), by) for x, y in zip(negative.T, positive.T, strict=True)]
        )
        assert (weight - expected[:, 0]).abs().max() < 1e-3
        assert (bias - expected[:, 1]).abs().max() < 1e-3
        assert found.provenance["means_apart_by_layer"][str(layer)]["after"] == pytest.approx(0, abs=1e-4)


def test_linear_act_takes_sorted_values_to_sorted_values() -> None:
    """Which text a value comes from does not matter, and a line through them is met exactly."""
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0]])
    y = torch.tensor([[16.0, 1.0], [12.0, 2.0], [14.0, 3.0]])
    weight, bias = map_of(x, y, spec_of())
    # A column with one value is shifted.
    assert weight.tolist() == pytest.approx([2.0, 1.0])
    assert bias.tolist() == pytest.approx([10.0, -3.0])


def test_gaussian_leaves_columns_without_spread_alone() -> None:
    x, y = torch.tensor([[1.0, 1.0], [1.0, 3.0]]), torch.tensor([[4.0, 0.0], [9.0, 4.0]])
    weight, bias = map_of(x, y, spec_of(by="gaussian"))
    assert (weight.tolist(), bias.tolist()) == (pytest.approx([1.0, 2.0]), pytest.approx([0.0, -2.0]))


@pytest.mark.parametrize("around", ["zero", "identity"])
def test_least_squares_is_the_shortest_matrix_that_takes_each_text_to_its_pair(
    loaded: Any, around: str
) -> None:
    found = fitted(loaded, by="least_squares", around=around, layers=[1])
    weight = found.tensors["x.block_output[1].weight"].double()
    positive, negative = last_tokens(loaded, 1)
    # Fewer pairs than columns: Xᵀ(XXᵀ)⁻¹Y, written out, around what stands elsewhere.
    start = torch.zeros(32, 32) if around == "zero" else torch.eye(32)
    gram = torch.tensor([[float(a @ b) for b in negative] for a in negative], dtype=torch.float64)
    expected = start + (negative.T @ torch.linalg.inv(gram) @ (positive - negative @ start.T.double())).T
    assert (weight - expected).abs().max() < 1e-3
    assert (negative @ weight.T - positive).abs().max() < 1e-3
    elsewhere = torch.linalg.svd(negative).Vh[-1]
    kept = torch.zeros(32).double() if around == "zero" else elsewhere
    assert (weight @ elsewhere - kept).abs().max() < 1e-3
    assert not found.tensors["x.block_output[1].bias"].any()


def test_by_name_the_form_is_the_recipe_s_and_every_layer_is_mapped(loaded: Any, tmp_path: Any) -> None:
    m = fit("affine_map", *loaded, pairs=PAIRS, tokens="last")
    (edit,) = m.spec.interventions
    assert (edit.kind, edit.form, edit.layer) == ("affine", "diagonal", None)

    def mapped(layer: int) -> Any:
        weight, bias = (m.tensors[f"affine_map.block_output[{layer}].{part}"] for part in ("weight", "bias"))
        return lambda _m, _a, output: output * weight + bias

    ids = torch.tensor([[1, 7, 8, 9, 12]])
    again = IntervenedModel.from_pretrained(m.save_pretrained(tmp_path / "art"))
    with torch.no_grad():
        edited, reloaded = m(ids).logits, again(ids).logits
        handles = [block.register_forward_hook(mapped(n)) for n, block in enumerate(loaded[0].model.layers)]
        with m.disabled():
            expected = m(ids).logits
        for handle in handles:
            handle.remove()
    assert (edited - expected).abs().max() < 1e-3
    assert (reloaded - expected).abs().max() < 1e-3
    dense = fit("affine_map", *loaded, pairs=PAIRS, by="least_squares", around="identity", layer=1)
    assert dense.spec.interventions[0].form == "dense"


LISTS = {"prompts": {"positive": ["hello world", "sun"], "negative": ["rain", "sad day", "gloomy"]}}
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "form": (PAIRS, {"form": "dense"}, r"interventions\[0\].form: `fit:` gives diagonal, found dense"),
    "unequal": (LISTS, {}, "expected as many positive prompts as negative ones, .*found 2 and 3"),
    "unpaired": (LISTS, {"by": "least_squares"}, "two lists of `prompts`, which are not paired"),
    "around": (PAIRS, {"around": "identity"}, "nothing but beside `by: least_squares`"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_fitted_is_refused(case: str, loaded: Any) -> None:
    pairs, fields, message = REFUSED[case]
    with pytest.raises((SubveneError, ValueError), match=message):
        fit("affine_map", *loaded, pairs=pairs, **fields)


def test_unequal_lists_have_a_gaussian_map(loaded: Any) -> None:
    assert len(fitted(loaded, pairs=LISTS, by="gaussian").tensors) == 6
