"""Geometry against numbers that are known without it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from subvene.runner.measures.geometry import explained_variance, explained_variance_by_layer, geometry
from subvene.specs import SubveneError

E1, E2, ZERO = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.zeros(2)


def shares(*names: str, layers: int = 2) -> dict[str, list[float | None]]:
    return {name: [0.5] * layers for name in names}


def test_cosines_and_norms_of_known_vectors() -> None:
    vectors = {"a": {0: 3 * E1, 1: E1 + E2}, "b": {0: -2 * E1, 1: 5 * E1}}
    found = geometry(vectors, 1, explained_variance=shares("a", "b"))
    half = 1 / math.sqrt(2)
    assert (found["layer"], found["layers"], found["traits"]) == (1, [0, 1], ["a", "b"])
    assert found["cosine_at_layer"] == [[1.0, pytest.approx(half)], [pytest.approx(half), 1.0]]
    assert found["cosine_by_layer"] == {"a|b": [-1.0, pytest.approx(half)]}
    assert found["across_layers"]["a"] == [[1.0, pytest.approx(half)], [pytest.approx(half), 1.0]]
    assert found["across_layers"]["b"] == [[1.0, -1.0], [-1.0, 1.0]]
    assert found["norms"] == {"a": [3.0, pytest.approx(math.sqrt(2))], "b": [2.0, 5.0]}
    assert found["explained_variance"] == shares("a", "b")


def test_a_zero_vector_has_no_cosine_and_the_rest_stands() -> None:
    vectors = {"a": {0: ZERO, 1: E1}, "b": {0: E2, 1: E1}}
    found = geometry(vectors, 0, explained_variance={"a": [None, 1.0], "b": [0.2, 0.3]})
    assert found["cosine_at_layer"] == [[None, None], [None, 1.0]]
    assert found["cosine_by_layer"] == {"a|b": [None, 1.0]}
    assert found["across_layers"]["a"] == [[None, None], [None, 1.0]]
    assert found["norms"]["a"] == [0.0, 1.0]
    json.dumps(found, allow_nan=False)


def test_layers_are_put_in_order_and_half_precision_is_computed_in_float64() -> None:
    a = torch.randn(4096, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    found = geometry({"a": {10: a, 9: 2 * a}}, 10, explained_variance=shares("a"))
    exact = math.sqrt(sum(float(x) ** 2 for x in a))
    assert found["layers"] == [9, 10]
    assert found["norms"]["a"] == [pytest.approx(2 * exact, rel=1e-12), pytest.approx(exact, rel=1e-12)]
    assert found["across_layers"]["a"][0][1] == pytest.approx(1.0, abs=1e-12)
    assert found["cosine_by_layer"] == {}


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_no_cosine_leaves_its_bounds(scale: float) -> None:
    a = scale * torch.randn(577, generator=torch.Generator().manual_seed(1))
    found = geometry({"a": {0: a}, "b": {0: a}, "c": {0: -a}}, 0, explained_variance=shares(*"abc", layers=1))
    flat = [value for row in found["cosine_at_layer"] for value in row]
    assert all(-1.0 <= value <= 1.0 for value in flat)
    assert flat == pytest.approx([1, 1, -1, 1, 1, -1, -1, -1, 1], abs=1e-12)


@pytest.mark.parametrize(
    ("vectors", "layer", "explained", "message"),
    [
        ({}, 0, {}, "at least one trait"),
        ({"a": {0: E1}}, 1, {"a": [0.1]}, "a layer that 'a' has a vector of, found 1"),
        ({"a": {0: E1}, "b": {1: E1}}, 0, shares("a", "b", layers=1), r"'b' at the layers of 'a' \[0\]"),
        (
            {"a": {0: E1}, "b": {0: torch.ones(3)}},
            0,
            shares("a", "b", layers=1),
            r"'b' at layer 0 to be \[2\]",
        ),
        ({"a": {0: torch.ones(1, 2)}}, 0, shares("a", layers=1), r"found \[1, 2\]"),
        ({"a": {0: E1 * math.nan}}, 0, shares("a", layers=1), "'a' at layer 0 has NaN"),
        ({"a": {0: E1}}, 0, {}, "explained variance of 'a' for each of 1 layers, found none"),
        ({"a": {0: E1}}, 0, {"a": [0.1, 0.2]}, "each of 1 layers, found 2"),
        ({"a": {0: E1}}, 0, {"a": [math.nan]}, "'a' is not finite"),
    ],
)
def test_what_does_not_fit_together_is_named(
    vectors: dict[str, dict[int, torch.Tensor]], layer: int, explained: dict[str, Any], message: str
) -> None:
    with pytest.raises(SubveneError, match=message):
        geometry(vectors, layer, explained_variance=explained)


def test_explained_variance_of_known_differences() -> None:
    # Along the mean (3, 0): 2² + 4² of 2² + 4² + 1² + 1².
    assert explained_variance(torch.tensor([[2.0, 1.0], [4.0, -1.0]])) == pytest.approx(20 / 22, rel=1e-12)
    assert explained_variance(torch.stack([E1, 7 * E1, -E1])) == pytest.approx(1.0)
    assert explained_variance(torch.eye(8)) == pytest.approx(1 / 8)
    assert explained_variance(E2.unsqueeze(0)) == pytest.approx(1.0)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_explained_variance_does_not_depend_on_the_scale(scale: float) -> None:
    differences = torch.randn(20, 50, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.4
    plain = explained_variance(differences)
    assert explained_variance(scale * differences) == pytest.approx(plain, rel=1e-9)
    by_hand = differences.mean(0) / differences.mean(0).norm()
    expected = sum(float(d @ by_hand) ** 2 for d in differences) / float((differences**2).sum())
    assert plain == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "differences", [torch.zeros(3, 2), torch.zeros(0, 2), torch.stack([E1, -E1]), torch.zeros(2, 0)]
)
def test_explained_variance_without_a_direction_is_none(differences: torch.Tensor) -> None:
    assert explained_variance(differences) is None


def test_explained_variance_refuses_what_it_cannot_read() -> None:
    with pytest.raises(SubveneError, match="NaN or infinity"):
        explained_variance(torch.tensor([[1.0, math.inf]]))
    with pytest.raises(SubveneError, match=r"\[pairs, width\], found \[2\]"):
        explained_variance(E1)
    with pytest.raises(SubveneError, match=r"found \[2, 3, 4\] and \[2, 3, 5\]"):
        explained_variance_by_layer(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5))


def test_explained_variance_by_layer_is_of_the_differences_of_each_layer() -> None:
    generator = torch.Generator().manual_seed(3)
    # A large common part, which float32 differences would lose digits to.
    common = 1000 * torch.randn(1, 3, 6, generator=generator)
    positive = torch.randn(5, 3, 6, generator=generator) + common
    negative = torch.randn(5, 3, 6, generator=generator) + common
    negative[:, 2] = positive[:, 2]
    found = explained_variance_by_layer(positive, negative)
    expected = [explained_variance(positive[:, i].double() - negative[:, i].double()) for i in range(2)]
    assert found == [*expected, None]
