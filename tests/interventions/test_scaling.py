"""Scaling: h_i ← g_i·h_i."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import BY_NAME, HEADS, LAYERS
from kind_cases import RESIDUAL, Case

from subvene.interventions import ScalingIntervention, Sizes, TensorError
from subvene.runner.exchange.exports.base import BakeError
from subvene.runner.exchange.exports.checkpoint import bake
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.parts import PartSizes
from subvene.specs import InterventionSpec, ScalingSpec

GAINS = torch.linspace(-1.0, 2.5, 24)
LAYER = LAYERS - 1
IDS = torch.tensor([[11, 12, 13, 14, 15, 16]])

CASES = [Case("scaling", RESIDUAL, lambda **kw: ScalingIntervention(GAINS, **kw), lambda h: h * GAINS - h)]


def build(tensors: Any, sizes: Sizes, **fields: Any) -> list[Any]:
    return ScalingIntervention.build(ScalingSpec(**{"layer": 1, **fields}), tensors, sizes)


def intervened(name: str, tensors: Any = None, **declared: Any) -> IntervenedModel:
    spec = InterventionSpec.model_validate(
        {"subvene": 1, "model": {"name": "tiny/x"}, "interventions": [{"kind": "scaling", **declared}]}
    )
    return IntervenedModel.from_spec(spec, model=BY_NAME[name].fresh(), tensors=tensors or {})


def test_a_gain_by_column_by_head_or_named(table: Callable[..., Any], sizes: Sizes) -> None:
    site, h = "attention_heads", torch.randn(2, 5, 32, dtype=torch.float64)
    by_head = torch.tensor([1.0, 0.0, -2.0, 1.0])
    expected = h.unflatten(-1, (4, 8)) * by_head.double().unsqueeze(-1)
    ((_, _, edit),) = build(table(**{f"g.{site}[1]": by_head}), sizes, site=site, gains={"key": "g"})
    torch.testing.assert_close(edit(h), expected.flatten(-2))
    columns = table(**{f"g.{site}[1]": by_head.repeat_interleave(8)})
    ((_, _, again),) = build(columns, sizes, site=site, gains={"key": "g"})
    assert torch.equal(again.gains, edit.gains)
    ((_, _, ablated),) = build(table(), sizes, site=site, heads=[1, 3], gain=0.0)
    kept = torch.tensor([1.0, 0, 1, 0], dtype=torch.float64).repeat_interleave(8)
    torch.testing.assert_close(ablated(h), h * kept)
    ((_, _, neuron),) = build(table(), sizes, site="block_output", neurons=[2], gain=3.0)
    assert torch.equal(neuron.gains, torch.ones(24).index_fill(0, torch.tensor([2]), 3.0))


def test_all_layers_that_are_stored(table: Callable[..., Any], sizes: Sizes) -> None:
    tensors = table(**{f"g.block_output[{layer}]": GAINS for layer in (0, 2)})
    built = build(tensors, sizes, layer=None, site="block_output", gains={"key": "g"})
    assert [layer for _, layer, _ in built] == [0, 2]
    with pytest.raises(TensorError, match="no gains under the key 'g' at the site mlp_output"):
        build(tensors, sizes, layer=None, site="mlp_output", gains={"key": "g"})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "`gains`, or `gain` with `neurons` or `heads`"),
        ({"gain": 0.0}, "`neurons` or `heads` beside it"),
        ({"gain": 0.0, "neurons": [1], "heads": [0]}, "`neurons` or `heads` beside it"),
        ({"gain": 0.0, "heads": [0]}, "no heads, but at attention_heads, query, key, value"),
        ({"gains": {"key": "g"}, "neurons": [1]}, "nothing beside `gains`"),
        ({"layer": None, "gain": 0.0, "neurons": [1]}, "an integer >= 0, or `gains`"),
    ],
)
def test_what_a_declaration_lacks_is_told(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        ScalingSpec(**{"layer": 1, **fields})


def test_a_head_that_queries_share_is_counted_as_such() -> None:
    assert intervened("llama", layer=0, site="key", heads=[1], gain=0.0)
    with pytest.raises(ValueError, match=r"heads from 0 to 1 at key\[0\], found 2"):
        intervened("llama", layer=0, site="key", heads=[2], gain=0.0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "falcon_new", "phi3"])
@torch.no_grad()
def test_gains_fold_into_the_map_beside_them(name: str) -> None:
    sizes = PartSizes.of(Anatomy.of(BY_NAME[name].shared()))
    for site in ("mlp_neurons", "attention_heads", "query", "value"):
        gains = torch.rand(sizes.site_width(site, LAYER), generator=torch.Generator().manual_seed(1)) * 2
        tensors = {f"g.{site}[{LAYER}]": gains}
        m = intervened(name, tensors, site=site, layer=LAYER, gains={"key": "g"})
        edited, plain = m(IDS).logits, m.model(IDS).logits
        torch.testing.assert_close(bake(m)(IDS).logits, edited, rtol=1e-4, atol=2e-5)
        assert (edited - plain).abs().max() > 1e-3


@torch.no_grad()
def test_an_ablated_head_is_a_row_of_zeros_in_the_output_projection() -> None:
    """An oracle of its own: the head's columns of the weight set to zero by hand."""
    arch = BY_NAME["llama"]
    m = intervened("llama", layer=LAYER, site="attention_heads", heads=[2], gain=0.0)
    by_hand = arch.fresh()
    weight = by_hand.get_submodule(arch.path("attention_heads", LAYER)).weight
    weight.view(-1, HEADS, arch.head_dim)[:, 2] = 0
    torch.testing.assert_close(m(IDS).logits, by_hand(IDS).logits, rtol=1e-5, atol=1e-5)


def test_the_stream_cannot_be_scaled_in_weights() -> None:
    sized = {f"g.block_output[{LAYER}]": torch.full((32,), 0.5)}
    m = intervened("llama", sized, site="block_output", layer=LAYER, gains={"key": "g"})
    with pytest.raises(BakeError, match="no weight carries the residual stream on"):
        bake(m)


def test_artifacts_keep_stored_gains_and_what_is_said(tmp_path: Any) -> None:
    sized = {f"g.mlp_neurons[{layer}]": torch.rand(48) for layer in range(LAYERS)}
    for i, m in enumerate(
        [
            intervened("llama", sized, gains={"key": "g"}, positions="response"),
            intervened("llama", site="value", layer=LAYER, heads=[0], gain=0.5),
        ]
    ):
        m.save_pretrained(tmp_path / str(i))
        again = IntervenedModel.from_pretrained(tmp_path / str(i), model=m.model)
        assert torch.equal(again(IDS, prompt_lengths=[3]).logits, m(IDS, prompt_lengths=[3]).logits)
        assert again.spec.interventions[0].gain == m.spec.interventions[0].gain
