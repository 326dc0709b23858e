"""Features of an SAE: h ← h + s·Σ_i (a'_i − a_i)·d_i, every architecture and operation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kind_cases import RESIDUAL, Case
from pydantic import ValidationError
from sae_by_hand import ARCHITECTURES, changed_by_hand, config, drawn

from subvene.interventions import SaeFeatureIntervention, Sizes, TensorError, TensorTable
from subvene.specs import SaeFeatureSpec

WEIGHTS, HOOK = drawn("standard", 24), "blocks.1.hook_resid_post"


def encoder(weights: dict[str, torch.Tensor], features: list[int]) -> dict[str, torch.Tensor]:
    return {
        "encoder": weights["W_enc"].T[features],
        "bias": weights["b_enc"][features],
        "shift": weights["b_dec"],
    }


def clamped(**kwargs: Any) -> SaeFeatureIntervention:
    return SaeFeatureIntervention(
        WEIGHTS["W_dec"][[3, 5]], [4.0, 0.5], encoder(WEIGHTS, [3, 5]), do="clamp", **kwargs
    )


def clamped_by_hand(h: torch.Tensor) -> torch.Tensor:
    encoded = (h - WEIGHTS["b_dec"].double()) @ WEIGHTS["W_enc"].double() + WEIGHTS["b_enc"].double()
    change = torch.tensor([4.0, 0.5], dtype=torch.float64) - encoded[..., [3, 5]].clamp_min(0)
    return change @ WEIGHTS["W_dec"][[3, 5]].double()


CASES = [
    Case("sae_feature", RESIDUAL, clamped, clamped_by_hand),
    Case(
        "sae_feature",
        RESIDUAL,
        lambda **kw: SaeFeatureIntervention(WEIGHTS["W_dec"][[3]], [4.0], do="add", **kw),
        lambda h: 4.0 * WEIGHTS["W_dec"][3].double().expand_as(h),
    ),
]
DONE = {"add": [2.0, -1.0], "clamp": [3.0, 0.0], "scale": [2.5, -1.0], "ablate": [0.0, 0.0]}


def stored(weights: dict[str, torch.Tensor], architecture: str, features: list[int]) -> TensorTable:
    rows = list(range(12)) if architecture == "topk" else features
    parts = {
        "encoder": weights["W_enc"].T[rows],
        "bias": weights["b_mag" if architecture == "gated" else "b_enc"][rows],
        "shift": weights["b_dec"],
        "decoder": weights["W_dec"][features],
    }
    if architecture == "jumprelu":
        parts["threshold"] = weights["threshold"][rows]
    if architecture == "gated":
        parts |= {"gate_bias": weights["b_gate"][rows], "r_mag": weights["r_mag"][rows]}
    named = {f"s.block_output[1].{part}": tensor for part, tensor in parts.items()}
    return TensorTable(named, "t.safetensors")


def spec(architecture: str, do: str, normalize: str = "none", **fields: Any) -> SaeFeatureSpec:
    sae = {"key": "s", "architecture": architecture, "normalize": normalize}
    if architecture == "topk":
        sae |= {"latents": 12, "k": 4}
    given = {"layer": 1, "sae": sae, "features": [3, 5], "do": do}
    if do != "ablate":
        given["value"] = DONE[do]
    return SaeFeatureSpec(**given | fields)


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("do", DONE)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_autoencoder_with_its_error_written_out(
    sizes: Sizes, architecture: str, do: str, normalize: str
) -> None:
    weights, h = drawn(architecture, 24), torch.randn(2, 9, 24, dtype=torch.float64)
    said = config(architecture, weights, HOOK, normalize_activations=normalize)
    table = stored(weights, architecture, [3, 5])
    ((_, _, edit),) = SaeFeatureIntervention.build(spec(architecture, do, normalize), table, sizes)
    found, expected = edit(h), changed_by_hand(said, weights, h, [3, 5], do, DONE[do])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert ((found - h).abs().amax(-1) > 1e-3).any()
    ((_, _, half),) = SaeFeatureIntervention.build(
        spec(architecture, do, normalize, strength=0.5), table, sizes
    )
    torch.testing.assert_close(half(h), h + 0.5 * (expected - h), rtol=1e-6, atol=1e-6)


def test_what_is_added_to_needs_no_encoder_and_what_is_read_does(sizes: Sizes) -> None:
    bare = TensorTable({"s.block_output[1].decoder": WEIGHTS["W_dec"][[3, 5]]}, "t.safetensors")
    ((_, _, edit),) = SaeFeatureIntervention.build(spec("jumprelu", "add"), bare, sizes)
    assert edit.stored("s", "block_output", 1).keys() == {"s.block_output[1].decoder"}
    with pytest.raises(TensorError, match=r"no tensor 's.block_output\[1\].encoder'"):
        SaeFeatureIntervention.build(spec("jumprelu", "clamp"), bare, sizes)


def test_of_topk_all_latents_are_kept(sizes: Sizes) -> None:
    table = stored(drawn("topk", 24), "topk", [3, 5])
    ((_, _, edit),) = SaeFeatureIntervention.build(spec("topk", "ablate"), table, sizes)
    assert edit.stored("s", "block_output", 1)["s.block_output[1].encoder"].shape == (12, 24)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"do": "ablate", "value": 1.0}, "ablation leaves nothing"),
        ({"do": "clamp", "value": None}, "a finite number, or a list"),
        ({"value": [1.0]}, "one number per feature, 2"),
        ({"features": [3, 3]}, "different integers"),
        ({"sae": {"key": "s", "architecture": "topk", "latents": 4, "k": 2}}, "latents from 0 to 3"),
        ({"sae": {"key": "s", "architecture": "topk", "latents": 12, "k": 13}}, "at most `latents`, 12"),
        ({"sae": {"key": "s", "architecture": "topk", "k": 3}}, "an integer >= 1, as the architecture"),
        ({"sae": {"key": "s", "architecture": "gated", "k": 3}}, "none: the architecture is gated"),
        ({"sae": {"id": "blocks.1"}}, "`release` and `id`"),
    ],
)
def test_what_a_declaration_is_told(fields: dict[str, Any], words: str) -> None:
    given = {"layer": 1, "features": [3, 5], "do": "add", "value": 1.0}
    with pytest.raises(ValidationError, match=words):
        SaeFeatureSpec(**given | {"sae": {"key": "s", "architecture": "standard"}} | fields)
