"""Capping: h ← h − max(p − τ, 0)·v̂ from above, h ← h + max(τ − p, 0)·v̂ from below, p = ⟨h, v̂⟩."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kind_cases import RESIDUAL, Case

from subvene.interventions import CappingIntervention, Sizes, TensorError
from subvene.specs import CappingSpec

V = 5 * torch.randn(24, generator=torch.Generator().manual_seed(0))
V_HAT = V.double() / V.double().norm()
NAME = "v.block_output[1]"


def _beyond(h: torch.Tensor) -> torch.Tensor:
    p = (h * V_HAT).sum(-1, keepdim=True)
    return -(p - 0.01).clamp_min(0) * V_HAT + (-0.02 - p).clamp_min(0) * V_HAT


CASES = [
    Case("capping", RESIDUAL, lambda **kw: CappingIntervention(V, ceiling=0.01, floor=-0.02, **kw), _beyond)
]


def build(tensors: Any, sizes: Sizes, **fields: Any) -> CappingIntervention:
    spec = CappingSpec(**{"layer": 1, "direction": {"key": "v"}, **fields})
    ((site, layer, edit),) = CappingIntervention.build(spec, tensors, sizes)
    assert (site, layer) == ("block_output", 1)
    return edit


def projected(values: list[float]) -> torch.Tensor:
    """[1, tokens, 24] whose projections on v̂ are `values`."""
    h = torch.randn(1, len(values), 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return h + (torch.tensor(values, dtype=torch.float64) - h @ V_HAT).unsqueeze(-1) * V_HAT


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"max": 1.0}, [-9.0, -1.0, 0.5, 1.0, 1.0]),
        ({"min": -1.0}, [-1.0, -1.0, 0.5, 1.0, 9.0]),
        ({"min": -1.0, "max": 1.0}, [-1.0, -1.0, 0.5, 1.0, 1.0]),
        ({"min": 0.7, "max": 0.7}, [0.7] * 5),
    ],
)
def test_projection_is_bounded_and_the_rest_is_kept(
    table: Callable[..., Any], sizes: Sizes, bounds: dict[str, float], expected: list[float]
) -> None:
    h = projected([-9.0, -1.0, 0.5, 1.0, 9.0])
    edited = build(table(**{NAME: V}), sizes, **bounds)(h)
    want = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close((edited @ V_HAT)[0], want, rtol=1e-5, atol=1e-5)
    across = torch.eye(24, dtype=torch.float64) - torch.outer(V_HAT, V_HAT)
    torch.testing.assert_close(edited @ across, h @ across, rtol=1e-5, atol=1e-5)


def test_half_strength_goes_half_way(table: Callable[..., Any], sizes: Sizes) -> None:
    edited = build(table(**{NAME: V}), sizes, max=1.0, strength=0.5)(projected([9.0]))
    assert (edited @ V_HAT).item() == pytest.approx(5.0, abs=1e-5)


def test_activation_within_the_bounds_is_unchanged(table: Callable[..., Any], sizes: Sizes) -> None:
    edit = build(table(**{NAME: V}), sizes, min=-1, max=1)
    h = projected([-0.9, 0.0, 0.9])
    assert torch.equal(edit(h), h)
    assert not edit.expects_change
    assert not edit.is_additive


def test_zero_direction(table: Callable[..., Any], sizes: Sizes) -> None:
    with pytest.raises(TensorError, match="zero everywhere, so it has no direction"):
        build(table(**{NAME: torch.zeros(24)}), sizes, max=1.0)


def test_stored_reads_back(table: Callable[..., Any], sizes: Sizes) -> None:
    edit = build(table(**{NAME: V}), sizes, max=1.0)
    stored = edit.stored("v", "block_output", 1)
    again = build(table(**stored), sizes, max=1.0)
    torch.testing.assert_close(again.direction, edit.direction, rtol=1e-7, atol=0)
