"""Affine maps: h ← h + s·(W·h + b − h)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import BY_NAME, LAYERS, WIDTH
from kind_cases import RESIDUAL, Case, draw

from subvene.interventions import AffineIntervention, Sizes, TensorError
from subvene.runner.exchange.exports.base import BakeError
from subvene.runner.exchange.exports.checkpoint import bake
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import AffineSpec, InterventionSpec

W, B = draw(24, 24, seed=1) / 5, draw(24, seed=2)
LAYER = LAYERS - 1
IDS = torch.tensor([[11, 12, 13, 14, 15, 16]])
NAME = "w.block_output[1]"

CASES = [
    Case("affine", RESIDUAL, lambda **kw: AffineIntervention(W, B, **kw), lambda h: h @ W.double().T + B - h)
]


def build(tensors: Any, sizes: Sizes, **fields: Any) -> AffineIntervention:
    spec = AffineSpec(**{"layer": 1, "map": {"key": "w"}, **fields})
    ((site, layer, edit),) = AffineIntervention.build(spec, tensors, sizes)
    assert (site, layer) == ("block_output", 1)
    return edit


def parts(form: str, width: int) -> dict[str, torch.Tensor]:
    found = {"bias": draw(width, seed=3)}
    if form == "low_rank":
        return found | {"a": draw(2, width, seed=4), "b": draw(2, width, seed=5)}
    return found | {"weight": draw(width, *([width] if form == "dense" else []), seed=6)}


def naive(form: str, tensors: dict[str, torch.Tensor], h: torch.Tensor, strength: float) -> torch.Tensor:
    """Token by token, with W written out."""
    w = tensors.get("weight", torch.zeros(0)).double()
    if form == "diagonal":
        w = torch.diag(w)
    if form == "low_rank":
        w = torch.eye(h.shape[-1], dtype=torch.float64)
        for a, b in zip(tensors["a"].double(), tensors["b"].double(), strict=True):
            w = w + torch.outer(b, a)
    found = [row + strength * (w @ row + tensors["bias"].double() - row) for row in h.flatten(0, -2)]
    return torch.stack(found).view_as(h)


FORMS = ["dense", "diagonal", "low_rank"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strength", [1.0, 0.5, -0.25])
def test_equals_a_map_that_is_written_out(
    table: Callable[..., Any], sizes: Sizes, form: str, strength: float
) -> None:
    tensors, h = parts(form, 24), torch.randn(2, 5, 24, dtype=torch.float64)
    rank = {"rank": 2} if form == "low_rank" else {}
    named = table(**{f"{NAME}.{part}": tensor for part, tensor in tensors.items()})
    edit = build(named, sizes, form=form, strength=strength, **rank)
    torch.testing.assert_close(edit(h), naive(form, tensors, h, strength), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(h + strength * edit.affine()(h), edit(h), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_part_of_another_shape_is_told(table: Callable[..., Any], sizes: Sizes, form: str) -> None:
    tensors = {f"{NAME}.{part}": tensor for part, tensor in parts(form, 23).items()}
    with pytest.raises(TensorError, match="has shape"):
        build(table(**tensors), sizes, form=form, rank=2)
    with pytest.raises(TensorError, match=r"no tensor 'w.block_output\[1\].bias'"):
        build(table(), sizes, form=form, rank=2)


def intervened(form: str, site: str, **fields: Any) -> IntervenedModel:
    width = {"block_output": WIDTH, "mlp_output": WIDTH, "mlp_neurons": 48, "attention_heads": 64}[site]
    declared = {"kind": "affine", "site": site, "layer": LAYER, "map": {"key": "w"}, "form": form}
    spec = InterventionSpec.model_validate(
        {
            "subvene": 1,
            "model": {"name": "tiny/llama"},
            "interventions": [declared | {"rank": 2, "strength": 0.3} | fields],
        }
    )
    tensors = {f"w.{site}[{LAYER}].{part}": tensor for part, tensor in parts(form, width).items()}
    return IntervenedModel.from_spec(spec, model=BY_NAME["llama"].fresh(), tensors=tensors)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("site", ["mlp_output", "mlp_neurons", "attention_heads"])
@torch.no_grad()
def test_is_a_change_of_the_map_beside_it(form: str, site: str) -> None:
    m = intervened(form, site)
    edited = m(IDS).logits
    torch.testing.assert_close(bake(m)(IDS).logits, edited, rtol=1e-4, atol=5e-5)
    assert (edited - m.model(IDS).logits).abs().max() > 1e-2


def test_the_stream_is_carried_on_by_no_weight() -> None:
    with pytest.raises(BakeError, match="no weight carries the residual stream on"):
        bake(intervened("diagonal", "block_output"))


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_scoring_is_generation_and_an_artifact_keeps_it(form: str, tmp_path: Any) -> None:
    m = intervened(form, "block_output", positions="response")
    mask = torch.ones_like(IDS)
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "pad_token_id": 0}
    written = m.generate_ids(IDS, mask, return_dict_in_generate=True, **options)
    scored = m(written.sequences, prompt_lengths=[6]).logits
    torch.testing.assert_close(scored[:, -5:-1], torch.stack(written.logits, 1), rtol=1e-4, atol=1e-4)
    m.save_pretrained(tmp_path / "a")
    again = IntervenedModel.from_pretrained(tmp_path / "a", model=m.model)
    assert torch.equal(again(IDS, prompt_lengths=[3]).logits, m(IDS, prompt_lengths=[3]).logits)
