"""Steering: h ← h + c·v."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kind_cases import RESIDUAL, Case

from subvene.interventions import Sizes, SteeringIntervention, TensorError
from subvene.specs import SteeringSpec

V = torch.randn(24, generator=torch.Generator().manual_seed(0)) * 4

CASES = [Case("steering", RESIDUAL, lambda **kw: SteeringIntervention(V, **kw), lambda h: V.double())]


def spec(**fields: Any) -> SteeringSpec:
    ref = {"key": "v"}
    return SteeringSpec(**{"layer": 1, "vector": ref, "coefficient": 2.0, **fields})


@pytest.mark.parametrize(("normalize", "norm"), [("none", V.norm().item()), ("unit", 1.0)])
def test_vector_keeps_its_norm_unless_it_is_normalized(
    table: Callable[..., Any], sizes: Sizes, normalize: str, norm: float
) -> None:
    ((site, layer, edit),) = SteeringIntervention.build(
        spec(normalize=normalize), table(**{"v.block_output[1]": V}), sizes
    )
    assert (site, layer) == ("block_output", 1)
    h = torch.randn(2, 3, 24, dtype=torch.float64)
    expected = h + 2.0 * norm * (V.double() / V.double().norm())
    torch.testing.assert_close(edit(h), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("site", ["block_output", "attention_heads", "attention_output", "mlp_output"])
def test_every_site_has_its_own_width(table: Callable[..., Any], sizes: Sizes, site: str) -> None:
    width = 32 if site == "attention_heads" else 24
    name = f"v.{site}[1]"
    ((_, _, edit),) = SteeringIntervention.build(spec(site=site), table(**{name: torch.ones(width)}), sizes)
    assert torch.equal(edit(torch.zeros(1, 1, width)), torch.full((1, 1, width), 2.0))
    assert edit.stored("v", site, 1).keys() == {name}
    with pytest.raises(TensorError, match=rf"shape \[7\], expected \[{width}\]"):
        SteeringIntervention.build(spec(site=site), table(**{name: torch.ones(7)}), sizes)


def test_strength_of_the_spec_may_be_per_row(table: Callable[..., Any], sizes: Sizes) -> None:
    tensors = table(**{"v.block_output[1]": V})
    ((_, _, edit),) = SteeringIntervention.build(spec(coefficient=(0.0, -1.0)), tensors, sizes)
    assert torch.equal(edit(torch.zeros(2, 1, 24))[:, 0], torch.stack([torch.zeros(24), -V]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_vector_stored_in_another_precision(
    table: Callable[..., Any], sizes: Sizes, dtype: torch.dtype
) -> None:
    ((_, _, edit),) = SteeringIntervention.build(spec(), table(**{"v.block_output[1]": V.to(dtype)}), sizes)
    assert edit.vector.dtype == torch.float32
    assert torch.equal(edit.vector, V.to(dtype).float())


@pytest.mark.parametrize("options", [{}, {"normalize": "unit"}], ids=str)
def test_zero_vector_has_no_direction(table: Callable[..., Any], sizes: Sizes, options: Any) -> None:
    zero = table(**{"v.block_output[1]": torch.zeros(24)})
    with pytest.raises(TensorError, match=r"'v.block_output\[1\]' is zero everywhere"):
        SteeringIntervention.build(spec(**options), zero, sizes)


def test_tiny_vector_is_normalized(table: Callable[..., Any], sizes: Sizes) -> None:
    tiny = table(**{"v.block_output[1]": V * 1e-30})
    ((_, _, edit),) = SteeringIntervention.build(spec(normalize="unit"), tiny, sizes)
    assert edit.delta(torch.zeros(1, 1, len(V))).norm().item() == pytest.approx(1.0)


def test_in_units_of_the_residual_norm(table: Callable[..., Any], sizes: Sizes) -> None:
    """A coefficient of 0.5 adds half the typical norm, whatever length the vector is stored with."""
    names = {"v.block_output[1]": V * 7, "v.block_output[1].residual_norm": torch.tensor(12.0)}
    ((_, _, edit),) = SteeringIntervention.build(
        spec(unit="residual_norm", coefficient=0.5), table(**names), sizes
    )
    h = torch.randn(2, 3, len(V))
    expected = h + 0.5 * 12.0 * V / V.norm()
    torch.testing.assert_close(edit(h), expected)
    kept = edit.stored("v", "block_output", 1)
    assert torch.equal(kept["v.block_output[1]"], V * 7)
    assert kept["v.block_output[1].residual_norm"] == 12.0
    # What stock pyvene keeps is the state dict alone.
    again = SteeringIntervention()
    again.load_state_dict(edit.state_dict())
    torch.testing.assert_close(again(h), expected)
    del names["v.block_output[1].residual_norm"]
    with pytest.raises(TensorError, match=r"no tensor 'v.block_output\[1\].residual_norm'"):
        SteeringIntervention.build(spec(unit="residual_norm"), table(**names), sizes)


def test_is_additive() -> None:
    assert SteeringIntervention(V).is_additive
    assert SteeringIntervention(V).expects_change


@pytest.mark.parametrize("coefficient", [2.0, -0.5])
def test_the_norm_is_kept_where_it_is_asked_for(
    table: Callable[..., Any], sizes: Sizes, coefficient: float
) -> None:
    tensors = table(**{"v.block_output[1]": V})
    declared = spec(preserve_norm=True, coefficient=coefficient)
    ((_, _, edit),) = SteeringIntervention.build(declared, tensors, sizes)
    h = torch.randn(2, 3, 24, dtype=torch.float64)
    rows = []
    for row in h.flatten(0, 1):
        moved = row + coefficient * V.double()
        rows.append(moved / moved.norm() * row.norm())
    torch.testing.assert_close(edit(h), torch.stack(rows).view_as(h), rtol=1e-6, atol=1e-6)
    # Nothing to turn, and a sum of zero: no NaN.
    assert torch.equal(edit(torch.zeros(1, 1, 24)), torch.zeros(1, 1, 24))
    against = SteeringIntervention(V, preserve_norm=True, strength=-1.0)
    assert torch.equal(against(V.view(1, 1, 24)), torch.zeros(1, 1, 24))
    mask = torch.tensor([[True, False, False], [False, False, True]])
    assert torch.equal(edit(h, positions=mask)[~mask], h[~mask])


def test_what_keeps_the_norm_is_no_constant() -> None:
    edit = SteeringIntervention(V, preserve_norm=True)
    assert (edit.affine(), edit.direction_formula(), edit.columns()) == (None, None, None)
    assert edit.depends_on_activation
    assert not edit.linear_in_strength
    again = SteeringIntervention()
    again.load_state_dict(edit.state_dict())
    assert again.preserves_norm
    assert not again.linear_in_strength
    assert SteeringIntervention(V).is_additive
