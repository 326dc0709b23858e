"""Ablation: h ← h − ⟨h, v̂⟩·v̂."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kind_cases import RESIDUAL, Case

from subvene.interventions import AblationIntervention, Sizes, TensorError
from subvene.specs import AblationSpec

V = 5 * torch.randn(24, generator=torch.Generator().manual_seed(0))
V_HAT = V.double() / V.double().norm()
NAME = "v.block_output[1]"

CASES = [
    Case(
        "ablation",
        RESIDUAL,
        lambda **kw: AblationIntervention(V, **kw),
        lambda h: -(h * V_HAT).sum(-1, keepdim=True) * V_HAT,
    )
]


def build(tensors: Any, sizes: Sizes, **fields: Any) -> AblationIntervention:
    spec = AblationSpec(**{"layer": 1, "direction": {"key": "v"}, **fields})
    ((site, layer, edit),) = AblationIntervention.build(spec, tensors, sizes)
    assert (site, layer) == ("block_output", 1)
    return edit


@pytest.mark.parametrize("strength", [1.0, 0.25, 2.0])
def test_direction_is_removed_and_the_rest_is_kept(
    table: Callable[..., Any], sizes: Sizes, strength: float
) -> None:
    h = torch.randn(2, 5, 24, dtype=torch.float64)
    edited = build(table(**{NAME: V}), sizes, strength=strength)(h)
    torch.testing.assert_close(edited @ V_HAT, (1 - strength) * (h @ V_HAT), rtol=1e-5, atol=1e-6)
    across = torch.eye(24, dtype=torch.float64) - torch.outer(V_HAT, V_HAT)
    torch.testing.assert_close(edited @ across, h @ across, rtol=1e-5, atol=1e-6)


def test_length_of_the_direction_does_not_matter(table: Callable[..., Any], sizes: Sizes) -> None:
    h = torch.randn(1, 3, 24)
    edited = build(table(**{NAME: V}), sizes)(h)
    for factor in (-1.0, 1e-25, 1e25):
        scaled = build(table(**{NAME: V * factor}), sizes)(h)
        torch.testing.assert_close(scaled, edited, rtol=1e-5, atol=1e-6)


def test_zero_direction(table: Callable[..., Any], sizes: Sizes) -> None:
    with pytest.raises(TensorError, match="zero everywhere, so it has no direction"):
        build(table(**{NAME: torch.zeros(24)}), sizes)


def test_is_not_additive() -> None:
    assert not AblationIntervention(V).is_additive
