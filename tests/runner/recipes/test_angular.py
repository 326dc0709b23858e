"""The recipe `angular`: candidates, cosines and axis with loops, and the turn that a file makes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from contrast_by_hand import PAIRS, TEXTS, last_tokens

from subvene.runner import IntervenedModel, fit
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes.angular import fit_angular, plane
from subvene.runner.recipes.random_direction import draw
from subvene.specs import AngularSpec, RandomDirectionSpec, SubveneError


def fitted(loaded: Any, **fields: Any) -> Any:
    spec = AngularSpec.model_validate({"key": "x", "pairs": TEXTS, **fields})
    return fit_angular(spec, spec.pairs, Anatomy.of(loaded[0]), loaded[1])


def candidates_by_hand(loaded: Any) -> list[torch.Tensor]:
    found = []
    for layer in range(3):
        means = []
        for side in last_tokens(loaded, layer):
            mean = sum((row / row.norm() for row in side), torch.zeros(32)) / len(side)
            means.append(mean / mean.norm())
        found.append(means[0] - means[1])
    return found


@pytest.mark.parametrize("first", ["max_sim", "max_norm"])
def test_it_is_the_plane_of_the_published_code(loaded: Any, first: str) -> None:
    found = fitted(loaded, first=first)
    candidates = candidates_by_hand(loaded)
    cosines = [
        sum(float(one @ other) / float(one.norm() * other.norm()) for other in candidates) / 3
        for one in candidates
    ]
    rank = cosines if first == "max_sim" else [float(one.norm()) for one in candidates]
    best = rank.index(max(rank))
    mean = sum(candidates, torch.zeros(32)) / 3
    spread = sum((torch.outer(c - mean, c - mean) for c in candidates), torch.zeros(32, 32))
    axis = torch.linalg.eigh(spread).eigenvectors[:, -1]
    axis = axis if float(axis @ mean) > 0 else -axis
    assert found.provenance["layer"] == best
    assert len(found.tensors) == 6
    for layer in range(3):
        first_one, second = (found.tensors[f"x.block_output[{layer}].{part}"] for part in ("first", "second"))
        assert (first_one - candidates[best] / candidates[best].norm()).abs().max() < 1e-5
        assert (second - axis).abs().max() < 1e-4


def test_the_two_rules_may_choose_different_layers() -> None:
    candidates = {0: torch.tensor([1.0, 0, 0]), 1: torch.tensor([0.9, 0.1, 0]), 2: torch.tensor([0, 5.0, 0])}
    by = {
        rule: plane({n: c.double() for n, c in candidates.items()}, rule)[0]
        for rule in ("max_sim", "max_norm")
    }
    assert by == {"max_sim": 1, "max_norm": 2}


def test_a_file_without_a_layer_turns_every_layer(loaded: Any, tmp_path: Any) -> None:
    m = fit("angular", *loaded, pairs=PAIRS, angle=120.0)
    first, second = (m.tensors[f"angular.block_output[0].{part}"].double() for part in ("first", "second"))
    across = second - (second @ first) * first
    basis = torch.stack([first, across / across.norm()])
    target = torch.tensor([math.cos(math.radians(120)), math.sin(math.radians(120))]).double() @ basis

    def turn(_m: Any, _a: Any, output: torch.Tensor) -> torch.Tensor:
        h = output.double()
        within = h @ basis.T
        return (h - within @ basis + within.norm(dim=-1, keepdim=True) * target).float()

    ids = torch.tensor([[1, 7, 8, 9, 12]])
    again = IntervenedModel.from_pretrained(m.save_pretrained(tmp_path / "art"))
    with torch.no_grad():
        edited, reloaded = m(ids).logits, again(ids).logits
        handles = [block.register_forward_hook(turn) for block in loaded[0].model.layers]
        with m.disabled():
            expected = m(ids).logits
        for handle in handles:
            handle.remove()
        with m.disabled():
            assert (m(ids).logits - expected).abs().max() > 0.1
    assert (edited - expected).abs().max() < 1e-4
    assert (reloaded - expected).abs().max() < 1e-4


def test_one_layer_spans_no_plane(loaded: Any) -> None:
    with pytest.raises(
        SubveneError, match="directions at two layers at least, which span the plane, found 1"
    ):
        fitted(loaded, layers=[1])


def test_what_is_fitted_is_for_rotations(loaded: Any) -> None:
    with pytest.raises(SubveneError, match="gives tensors for rotation, found steering"):
        fit("angular", *loaded, pairs=PAIRS, kind="steering", layer=1, coefficient=1.0)


def test_a_random_plane_is_one_plane_for_all_layers_too(loaded: Any) -> None:
    tensors = fitted(loaded).tensors
    drawn = draw(RandomDirectionSpec(key="r", like="x"), tensors, seed=1).tensors
    for part in ("first", "second"):
        (one, *others) = (drawn[f"r.block_output[{layer}].{part}"] for layer in range(3))
        assert all(torch.equal(one, other) for other in others)
        assert abs(float(one @ tensors[f"x.block_output[0].{part}"])) < 0.9
        assert float(one.norm()) == pytest.approx(1.0)
    with pytest.raises(SubveneError, match=r"gives m\.block_output\[0\]\.bias, which is no direction"):
        draw(RandomDirectionSpec(key="r", like="m"), {"m.block_output[0].bias": torch.ones(2)}, seed=1)
