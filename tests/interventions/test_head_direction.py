"""Head directions: o_h ← o_h + α·σ_h·θ̂_h at chosen heads, one intervention a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from subvene.interventions import HeadDirectionIntervention, Sizes, TensorError
from subvene.specs import HeadDirectionSpec

GENERATOR = torch.Generator().manual_seed(0)
THETA = torch.nn.functional.normalize(torch.randn(4, 8, generator=GENERATOR), dim=-1)
SIGMA = torch.rand(4, generator=GENERATOR) + 0.5
NAME = "iti.attention_heads[1]"


def spec(**fields: Any) -> HeadDirectionSpec:
    return HeadDirectionSpec(**{"directions": {"key": "iti"}, "strength": 15.0, **fields})


def by_hand(h: torch.Tensor, chosen: tuple[int, ...], alpha: float = 15.0) -> torch.Tensor:
    out = h.double().clone()
    for head in chosen:
        out[..., head * 8 : head * 8 + 8] += alpha * SIGMA[head].double() * THETA[head].double()
    return out


@pytest.mark.parametrize("beside", [True, False], ids=["sigma beside", "sigma folded in"])
@pytest.mark.parametrize("chosen", [(0, 1, 2, 3), (2,), (3, 0)])
def test_chosen_heads_are_shifted_and_no_other(
    table: Callable[..., Any], sizes: Sizes, beside: bool, chosen: tuple[int, ...]
) -> None:
    tensors = {NAME: THETA, f"{NAME}.sigma": SIGMA} if beside else {NAME: SIGMA[:, None] * THETA}
    heads = None if len(chosen) == 4 else {1: chosen}
    ((site, layer, edit),) = HeadDirectionIntervention.build(spec(heads=heads), table(**tensors), sizes)
    assert (site, layer) == ("attention_heads", 1)
    h = torch.randn(2, 3, 32, dtype=torch.float64)
    torch.testing.assert_close(edit(h), by_hand(h, chosen), rtol=1e-6, atol=1e-5)
    left = [i for i in range(32) if i // 8 not in chosen]
    assert torch.equal(edit(h)[..., left], h[..., left])


def test_one_intervention_a_layer(table: Callable[..., Any], sizes: Sizes) -> None:
    tensors = table(**{f"iti.attention_heads[{layer}]": THETA for layer in (2, 0, 1)})
    built = HeadDirectionIntervention.build(spec(), tensors, sizes)
    assert [(site, layer) for site, layer, _ in built] == [("attention_heads", i) for i in range(3)]
    built = HeadDirectionIntervention.build(spec(heads={2: [0, 1], 0: [3]}), tensors, sizes)
    assert [layer for _, layer, _ in built] == [0, 2]
    assert [int(edit.shift.view(4, 8).any(-1).sum()) for _, _, edit in built] == [1, 2]


def test_sigma_beside_a_plain_key_is_not_lost(table: Callable[..., Any], sizes: Sizes) -> None:
    plain = table(**{"iti": THETA, "iti.sigma": SIGMA})
    ((_, _, edit),) = HeadDirectionIntervention.build(spec(heads={1: [0]}), plain, sizes)
    h = torch.zeros(1, 1, 32)
    torch.testing.assert_close(edit(h).double(), by_hand(h, (0,)), rtol=1e-6, atol=1e-6)


def test_layers_without_a_direction_are_left_out(table: Callable[..., Any], sizes: Sizes) -> None:
    tensors = {NAME: THETA, "iti.attention_heads[2]": torch.zeros(4, 8)}
    built = HeadDirectionIntervention.build(spec(), table(**tensors), sizes)
    assert [layer for _, layer, _ in built] == [1]


def test_stored_reads_back(table: Callable[..., Any], sizes: Sizes) -> None:
    tensors = table(**{NAME: THETA, f"{NAME}.sigma": SIGMA})
    ((_, _, edit),) = HeadDirectionIntervention.build(spec(heads={1: [2]}), tensors, sizes)
    stored = edit.stored("iti", "attention_heads", 1)
    assert stored.keys() == {NAME, f"{NAME}.sigma"}
    ((_, _, again),) = HeadDirectionIntervention.build(spec(heads={1: [2]}), table(**stored), sizes)
    assert torch.equal(again.shift, edit.shift)


@pytest.mark.parametrize(
    ("tensors", "heads", "message"),
    [
        ({}, None, r"t.safetensors: no directions under the key 'iti'.*'iti.attention_heads\[0\]' \[n_heads"),
        (
            {"other.attention_heads[1]": THETA},
            {1: [0]},
            r"no tensor 'iti.attention_heads\[1\]'; there is: other",
        ),
        ({NAME: THETA.T}, None, r"shape \[8, 4\], expected \[4, 8\]"),
        ({NAME: THETA, f"{NAME}.sigma": SIGMA[:3]}, None, r"sigma' has shape \[3\], expected \[4\]"),
        ({NAME: THETA * torch.nan}, None, "NaN"),
        ({NAME: torch.zeros(4, 8)}, None, "'iti' are zero at every layer and head"),
        ({NAME: THETA * torch.tensor([[1], [0], [1], [1]])}, {1: [0, 1]}, r"zero at the chosen heads \[1\]"),
    ],
)
def test_tensors_that_do_not_fit(
    table: Callable[..., Any], sizes: Sizes, tensors: dict[str, torch.Tensor], heads: Any, message: str
) -> None:
    with pytest.raises(TensorError, match=message):
        HeadDirectionIntervention.build(spec(heads=heads), table(**tensors), sizes)


def test_is_additive() -> None:
    assert HeadDirectionIntervention(THETA).is_additive
