"""Head directions: o_h ← o_h + α·σ_h·θ̂_h at chosen heads, one intervention a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kind_cases import O_PROJ, Case, draw

from subvene.interventions import HeadDirectionIntervention, Sizes, TensorError
from subvene.specs import HeadDirectionSpec

GENERATOR = torch.Generator().manual_seed(0)
THETA = torch.nn.functional.normalize(torch.randn(4, 8, generator=GENERATOR), dim=-1)
SIGMA = torch.rand(4, generator=GENERATOR) + 0.5
NAME = "iti.attention_heads[1]"
W, BIAS = draw(4, 8, seed=5), draw(4, seed=6)


def _monitored(h: torch.Tensor) -> torch.Tensor:
    logits = [h[..., 8 * i : 8 * i + 8] @ W[i].double() + BIAS[i].double() for i in range(4)]
    shifts = [SIGMA[i].double() * THETA[i].double() for i in range(4)]
    return torch.cat([shifts[i] / (1 + logits[i].exp().unsqueeze(-1)) for i in range(4)], -1)


CASES = [
    Case(
        "head_direction",
        O_PROJ,
        lambda **kw: HeadDirectionIntervention(THETA, SIGMA, **kw),
        lambda h: torch.cat([SIGMA[i].double() * THETA[i].double() for i in range(4)]),
    ),
    Case(
        "head_direction",
        O_PROJ,
        lambda **kw: HeadDirectionIntervention(THETA, SIGMA, W, BIAS, **kw),
        _monitored,
    ),
]


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
        ({NAME: THETA, f"{NAME}.sigma": SIGMA * torch.tensor([1, 0, 1, 0])}, None, r"sigma.* heads \[1, 3\]"),
        ({NAME: THETA, f"{NAME}.sigma": torch.zeros(4)}, {1: [2]}, r"sigma.* is zero at the heads \[2\]"),
    ],
)
def test_tensors_that_do_not_fit(
    table: Callable[..., Any], sizes: Sizes, tensors: dict[str, torch.Tensor], heads: Any, message: str
) -> None:
    with pytest.raises(TensorError, match=message):
        HeadDirectionIntervention.build(spec(heads=heads), table(**tensors), sizes)


def test_is_additive() -> None:
    assert HeadDirectionIntervention(THETA).is_additive
    assert not HeadDirectionIntervention(THETA, None, WEIGHT, BIAS).is_additive


# --- self-monitored strength

WEIGHT = torch.randn(4, 8, generator=GENERATOR)
BIAS = torch.randn(4, generator=GENERATOR)
PROBED = {
    NAME: THETA,
    f"{NAME}.sigma": SIGMA,
    f"{NAME}.probe_weight": WEIGHT,
    f"{NAME}.probe_bias": BIAS,
}


def adaptive_by_hand(h: torch.Tensor, chosen: tuple[int, ...], alpha: float) -> torch.Tensor:
    out = h.double().clone()
    for head in chosen:
        o = h[..., head * 8 : head * 8 + 8].double()
        p = torch.sigmoid(o @ WEIGHT[head].double() + BIAS[head].double())
        out[..., head * 8 : head * 8 + 8] += (
            alpha * (1 - p)[..., None] * (SIGMA[head].double() * THETA[head].double())
        )
    return out


@pytest.mark.parametrize("alpha", [15.0, -4.0, 0.0])
@pytest.mark.parametrize("chosen", [(0, 1, 2, 3), (3, 0)])
def test_strength_falls_with_the_probe(
    table: Callable[..., Any], sizes: Sizes, chosen: tuple[int, ...], alpha: float
) -> None:
    declared = spec(heads=None if len(chosen) == 4 else {1: chosen}, strength=alpha, adaptive="one_minus_p")
    ((_, _, edit),) = HeadDirectionIntervention.build(declared, table(**PROBED), sizes)
    h = torch.randn(2, 3, 32, dtype=torch.float64)
    torch.testing.assert_close(edit(h), adaptive_by_hand(h, chosen, alpha), rtol=1e-6, atol=1e-5)
    summed, count = edit.strength_factors(h)
    p = torch.sigmoid((h.view(2, 3, 4, 8) * WEIGHT.double()).sum(-1) + BIAS.double())
    assert int(count) == len(chosen)
    torch.testing.assert_close(summed, (1 - p)[..., list(chosen)].sum(-1))
    if alpha == 0:
        assert torch.equal(edit(h), h)


def test_a_probe_that_is_sure_stops_the_edit_and_its_opposite_lets_it_through() -> None:
    h = torch.randn(1, 1, 32)
    sure = torch.tensor([200.0, -200.0, 200.0, -200.0])
    edit = HeadDirectionIntervention(THETA, None, torch.zeros(4, 8), sure, strength=5.0)
    expected = h + 5.0 * (THETA * torch.tensor([[0.0], [1.0], [0.0], [1.0]])).flatten()
    torch.testing.assert_close(edit(h), expected)


def test_the_probe_keeps_its_digits_near_1() -> None:
    edit = HeadDirectionIntervention(THETA, None, torch.zeros(4, 8), torch.full((4,), 20.0))
    summed, _ = edit.strength_factors(torch.zeros(1, 1, 32))
    assert float(summed) == pytest.approx(4 * 2.0611536e-9, rel=1e-5)


def test_probes_stored_beside_a_constant_direction_are_not_used(
    table: Callable[..., Any], sizes: Sizes
) -> None:
    ((_, _, edit),) = HeadDirectionIntervention.build(spec(), table(**PROBED), sizes)
    assert edit.is_additive
    assert edit.strength_factors(torch.zeros(1, 1, 32)) is None
    assert edit.stored("iti", "attention_heads", 1).keys() == {NAME, f"{NAME}.sigma"}


def test_stored_probes_read_back(table: Callable[..., Any], sizes: Sizes) -> None:
    declared = spec(heads={1: [2, 0]}, adaptive="one_minus_p")
    ((_, _, edit),) = HeadDirectionIntervention.build(declared, table(**PROBED), sizes)
    stored = edit.stored("iti", "attention_heads", 1)
    assert stored.keys() == PROBED.keys()
    ((_, _, again),) = HeadDirectionIntervention.build(declared, table(**stored), sizes)
    h = torch.randn(1, 4, 32)
    assert torch.equal(again(h), edit(h))
    assert not torch.equal(again(h), h)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"probe_weight": None},
            r"no tensor 'iti.attention_heads\[1\].probe_weight'; `adaptive: one_minus_p`.*iti.*or leave",
        ),
        ({"probe_bias": None}, r"no tensor 'iti.attention_heads\[1\].probe_bias'; `adap"),
        ({"probe_weight": None, "probe_bias": None}, r"probe_weight' and '.*probe_bias';"),
        ({"probe_weight": WEIGHT[:3]}, r"probe_weight' has shape \[3, 8\], expected \[4, 8\]"),
        ({"probe_bias": BIAS[:, None]}, r"probe_bias' has shape \[4, 1\], expected \[4\]"),
        ({"probe_bias": BIAS * torch.nan}, "probe_bias' holds NaN"),
    ],
)
def test_probes_that_do_not_fit(
    table: Callable[..., Any], sizes: Sizes, change: dict[str, Any], message: str
) -> None:
    given = PROBED | {f"{NAME}.{part}": tensor for part, tensor in change.items()}
    tensors = {name: tensor for name, tensor in given.items() if tensor is not None}
    with pytest.raises(TensorError, match=message):
        HeadDirectionIntervention.build(spec(adaptive="one_minus_p"), table(**tensors), sizes)
