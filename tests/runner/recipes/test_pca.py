"""The recipe `pca`: the leading eigenvector of a covariance that is added up by hand, with repeng's sign."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contrast_by_hand import PAIRS, TEXTS, last_tokens, of_words

from subvene.runner import fit
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes.pca import axis_of_pairs, fit_pca
from subvene.specs import PCASpec, SubveneError


def fitted(loaded: Any, **fields: Any) -> Any:
    spec = PCASpec.model_validate({"key": "x", "pairs": TEXTS, **fields})
    return fit_pca(spec, spec.pairs, Anatomy.of(loaded[0]), loaded[1])


def by_hand(positive: torch.Tensor, negative: torch.Tensor, of: str) -> torch.Tensor:
    """The method of repeng's `read_representations`, with an eigenvector in place of scikit-learn."""
    width = positive.shape[1]
    rows = []
    for p, n in zip(positive, negative, strict=True):
        rows += [p - n] if of == "diff" else [p - (p + n) / 2, n - (p + n) / 2]
    mean = sum(rows, torch.zeros(width)) / len(rows)
    covariance = torch.zeros(width, width, dtype=torch.float64)
    for row in rows:
        covariance += torch.outer(row - mean, row - mean)
    axis = torch.linalg.eigh(covariance).eigenvectors[:, -1]
    above = sum(float(p @ axis) > float(n @ axis) for p, n in zip(positive, negative, strict=True))
    return axis if above > len(positive) / 2 else -axis


@pytest.mark.parametrize("of", ["center", "diff"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_it_is_repeng_s_axis(loaded: Any, of: str, batch_size: int) -> None:
    found = fitted(loaded, of=of, batch_size=batch_size)
    assert list(found.tensors) == [f"x.block_output[{layer}]" for layer in range(3)]
    for layer in range(3):
        axis = found.tensors[f"x.block_output[{layer}]"]
        positive, negative = last_tokens(loaded, layer)
        assert (axis - by_hand(positive, negative, of)).abs().max() < 1e-4
        in_order = float(((positive - negative) @ axis.double() > 0).double().mean())
        assert found.provenance["pairs_in_order_by_layer"][str(layer)] == in_order > 0.5


def test_center_and_diff_are_different_axes(loaded: Any) -> None:
    center, diff = (fitted(loaded, of=of).tensors["x.block_output[1]"] for of in ("center", "diff"))
    assert abs(float(center @ diff)) < 0.99


def test_diff_takes_out_what_all_pairs_have_in_common() -> None:
    """By design of repeng's `pca_diff`, and the reason for the default."""
    common, own = torch.eye(3, dtype=torch.float64)[:2]
    negative = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
    positive = negative + 5 * common + torch.tensor([1.0, 2.0, 3.0, 4.0]).double()[:, None] * 0.1 * own
    center, diff = (axis_of_pairs(positive, negative, of) for of in ("center", "diff"))
    assert isinstance(center, torch.Tensor)
    assert isinstance(diff, torch.Tensor)
    assert center @ common > 0.99
    assert diff @ own > 0.999
    assert "all in the same way" in axis_of_pairs(negative + common, negative, "diff")  # type: ignore[operator]


def test_the_sign_is_that_of_more_pairs_and_not_of_the_longer_ones() -> None:
    negative = torch.zeros(3, 2, dtype=torch.float64)
    positive = torch.tensor([[1.0, 0], [1.0, 0], [-9.0, 0]], dtype=torch.float64)
    axis = axis_of_pairs(positive, negative, "center")
    assert isinstance(axis, torch.Tensor)
    assert axis.tolist() == pytest.approx([1, 0])
    # As many above as below: the mean difference decides.
    axis = axis_of_pairs(positive[1:], negative[1:], "center")
    assert isinstance(axis, torch.Tensor)
    assert axis.tolist() == pytest.approx([-1, 0])


def test_the_mean_of_tokens_can_be_read(loaded: Any) -> None:
    axis = fitted(loaded, tokens="mean").tensors["x.block_output[1]"]
    sides = [torch.stack([of_words(loaded, p[i], 1)[1:].mean(0) for p in PAIRS]) for i in (0, 1)]
    assert (axis - by_hand(*sides, "center")).abs().max() < 1e-4


def test_by_name(loaded: Any) -> None:
    m = fit("pca", *loaded, pairs=PAIRS, layer=1, coefficient=2.0)
    assert torch.equal(m.tensors["pca.block_output[1]"], fitted(loaded).tensors["x.block_output[1]"])


@pytest.mark.parametrize(
    ("pairs", "fields", "message"),
    [
        (PAIRS[:1], {"of": "diff"}, "there is one pair; give more, or `of: center`"),
        ({"prompts": {"positive": ["a"], "negative": ["b"]}}, {}, "two lists of `prompts`, which are not"),
        ([("good", "good")], {}, "pair 0 reads the same tokens"),
    ],
)
def test_what_has_no_axis_is_refused(loaded: Any, pairs: Any, fields: Any, message: str) -> None:
    with pytest.raises(SubveneError, match=message):
        fit("pca", *loaded, pairs=pairs, layer=1, coefficient=1.0, **fields)


def test_a_layer_that_is_not_finite_is_left_out(loaded: Any) -> None:
    loaded[0].model.layers[2].mlp.down_proj.weight.data[:] = torch.nan
    found = fitted(loaded)
    assert found.provenance["left_out"] == {"2": "its activations are not finite"}
    assert len(found.tensors) == 2
