"""Rotation: h ← h + s·(‖P·h‖·u_θ − P·h)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import BY_NAME, LAYERS, WIDTH
from kind_cases import RESIDUAL, Case, draw

from subvene.interventions import RotationIntervention, Sizes, TensorError
from subvene.runner.exchange.exports.base import BakeError
from subvene.runner.exchange.exports.checkpoint import bake
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import InterventionSpec, RotationSpec

FIRST, SECOND = draw(24, seed=1), draw(24, seed=2)
NAME, LAYER = "p.block_output[1]", LAYERS - 1
IDS = torch.tensor([[11, 12, 13, 14, 15, 16]])


def by_hand(h: torch.Tensor, degrees: float, *, aligned: bool = False) -> torch.Tensor:
    """Token by token, with coordinates in the plane and their polar form."""
    e1 = FIRST.double() / FIRST.double().norm()
    e2 = SECOND.double() - (SECOND.double() @ e1) * e1
    e2 = e2 / e2.norm()
    rows = []
    for row in h.reshape(-1, h.shape[-1]):
        x, y = float(row @ e1), float(row @ e2)
        radius, theta = math.hypot(x, y), math.radians(degrees)
        moved = row - x * e1 - y * e2 + radius * (math.cos(theta) * e1 + math.sin(theta) * e2)
        rows.append(row if aligned and x <= 0 else moved)
    return torch.stack(rows).view_as(h)


def _delta(h: torch.Tensor) -> torch.Tensor:
    e1 = FIRST.double() / FIRST.double().norm()
    e2 = SECOND.double() - (SECOND.double() @ e1) * e1
    plane = torch.stack([e1, e2 / e2.norm()])
    within = h @ plane.T
    to = torch.tensor([math.cos(math.radians(60)), math.sin(math.radians(60))], dtype=torch.float64)
    return (within.norm(dim=-1, keepdim=True) * to - within) @ plane


CASES = [
    Case("rotation", RESIDUAL, lambda **kw: RotationIntervention(FIRST, SECOND, 60.0, **kw), _delta),
]


def build(table: Callable[..., Any], sizes: Sizes, **fields: Any) -> RotationIntervention:
    spec = RotationSpec(**{"layer": 1, "plane": {"key": "p"}, "angle": 60.0, **fields})
    tensors = table(**{f"{NAME}.first": FIRST, f"{NAME}.second": SECOND})
    ((_, _, edit),) = RotationIntervention.build(spec, tensors, sizes)
    return edit


@pytest.mark.parametrize("angle", [0.0, 90.0, 180.0, -37.5, 360.0])
@pytest.mark.parametrize("adaptive", ["none", "aligned"])
def test_turns_to_the_angle_and_keeps_the_norm(
    table: Callable[..., Any], sizes: Sizes, angle: float, adaptive: str
) -> None:
    h = torch.randn(2, 20, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    edited = build(table, sizes, angle=angle, adaptive=adaptive)(h)
    torch.testing.assert_close(edited, by_hand(h, angle, aligned=adaptive == "aligned"), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(edited.norm(dim=-1), h.norm(dim=-1), rtol=1e-5, atol=1e-6)
    if adaptive == "aligned":
        behind = (h @ FIRST.double()) <= 0
        assert torch.equal(edited[behind], h[behind])
        assert behind.any()
        assert not behind.all()


def test_vectors_that_span_no_plane_are_refused(table: Callable[..., Any], sizes: Sizes) -> None:
    spec = RotationSpec(layer=1, plane={"key": "p"}, angle=10)
    tensors = table(**{f"{NAME}.first": FIRST, f"{NAME}.second": -2 * FIRST})
    with pytest.raises(TensorError, match="they span no plane"):
        RotationIntervention.build(spec, tensors, sizes)
    with pytest.raises(ValueError, match="degrees from -360 to 360"):
        RotationSpec(layer=1, plane={"key": "p"}, angle=361)


@pytest.mark.parametrize("adaptive", ["none", "aligned"])
@torch.no_grad()
def test_scoring_is_generation_an_artifact_keeps_it_and_no_weight_holds_it(
    adaptive: str, tmp_path: Any
) -> None:
    declared = {"kind": "rotation", "layer": LAYER, "plane": {"key": "p"}, "angle": 140.0}
    spec = InterventionSpec.model_validate(
        {
            "subvene": 1,
            "model": {"name": "tiny/llama"},
            "interventions": [declared | {"adaptive": adaptive, "positions": "response"}],
        }
    )
    tensors = {f"p.block_output[{LAYER}].{n}": draw(WIDTH, seed=i) for i, n in enumerate(["first", "second"])}
    m = IntervenedModel.from_spec(spec, model=BY_NAME["llama"].shared(), tensors=tensors)
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "pad_token_id": 0}
    written = m.generate_ids(IDS, torch.ones_like(IDS), return_dict_in_generate=True, **options)
    scored = m(written.sequences, prompt_lengths=[6]).logits
    torch.testing.assert_close(scored[:, -5:-1], torch.stack(written.logits, 1), rtol=1e-4, atol=1e-4)
    m.save_pretrained(tmp_path / "a")
    again = IntervenedModel.from_pretrained(tmp_path / "a", model=m.model)
    found, expected = (one(IDS, prompt_lengths=[3]).logits for one in (again, m))
    assert torch.equal(found, expected)
    with pytest.raises(BakeError, match="depends on the activation"):
        bake(m)
