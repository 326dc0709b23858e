"""Every kind of intervention, as a spec declares it and as plain torch does it, for every architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from architectures import HEADS, LAYERS, Architecture

from subvene.specs import CORE_SITES, InterventionSpec

LAYER = LAYERS - 1


@dataclass(frozen=True)
class Kind:
    """One intervention, as a spec declares it and as plain torch does it.

    Attributes:
        name: the test id.
        site: where it acts.
        fields: of its spec, without positions.
        tensors: (name in the spec's table, shape in words) drawn at random.
        by_hand: the edit of an activation, given the tensors of the layer.
        layers: blocks that it acts on.
    """

    name: str
    site: str
    fields: dict[str, Any]
    parts: tuple[str, ...]
    by_hand: Callable[..., torch.Tensor]
    layers: tuple[int, ...] = (LAYER,)

    def tensors(self, arch: Architecture) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(7)
        width = arch.width(self.site)
        shapes: dict[str, tuple[int, ...]] = {"": (width,), ".a": (1, width), ".b": (1, width)}
        shapes |= {".first": (width,), ".second": (width,), ".weight": (width, width), ".bias": (width,)}
        if self.name == "head_direction":
            shapes = {"": (HEADS, arch.head_dim), ".sigma": (HEADS,)}
        if self.name == "sae_feature":
            shapes = {".encoder": (2, width), ".decoder": (2, width), ".bias": (2,), ".shift": (width,)}
        return {
            f"k.{self.site}[{layer}]{part}": torch.randn(shapes[part], generator=generator)
            for layer in self.layers
            for part in self.parts
        }

    def spec(self, arch: Architecture, positions: Any = "all") -> InterventionSpec:
        declared = {**self.fields, "positions": positions}
        return InterventionSpec.model_validate(
            {"subvene": 1, "model": {"name": f"tiny/{arch.name}"}, "interventions": [declared]}
        )

    def edit(self, arch: Architecture, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        tensors = self.tensors(arch)
        return partial(self.by_hand, *(tensors[f"k.{self.site}[{layer}]{part}"] for part in self.parts))

    def __repr__(self) -> str:
        return self.name


def _along(v: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    unit = v / v.norm()
    return unit, (h * unit).sum(-1, keepdim=True)


def _capped(v: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    unit, p = _along(v, h)
    return h + (6.0 - p).clamp_min(0) * unit


def _ablated(v: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    unit, p = _along(v, h)
    return h - p * unit


def _scaled(gains: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return h + 0.5 * (gains - 1) * h


def _mapped(weight: torch.Tensor, bias: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return h + 0.25 * (h @ weight.T + bias - h)


def _turned(first: torch.Tensor, second: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """To 60 degrees within the plane of the two."""
    one, p = _along(first, h)
    other, q = _along(second - (second @ one) * one, h)
    length = (p**2 + q**2).sqrt()
    return h - p * one - q * other + length * (0.5 * one + 0.75**0.5 * other)


def _clamped(
    encoder: torch.Tensor, decoder: torch.Tensor, bias: torch.Tensor, shift: torch.Tensor, h: torch.Tensor
) -> torch.Tensor:
    before = ((h - shift) @ encoder.T + bias).clamp_min(0)
    return h + (3.0 - before[..., :1]) * decoder[0] + (0.5 - before[..., 1:]) * decoder[1]


def _pyvene(name: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "pyvene", "class": name, "layer": LAYER, **fields}


KEY = {"key": "k"}
KINDS = (
    Kind(
        "head_direction",
        "attention_heads",
        {"kind": "head_direction", "directions": KEY, "strength": 3.0},
        ("", ".sigma"),
        lambda d, sigma, h: h + 3.0 * (sigma[:, None] * d).flatten(),
        layers=tuple(range(LAYERS)),
    ),
    *(
        Kind(
            f"steering_{site}",
            site,
            {"kind": "steering", "site": site, "layer": LAYER, "vector": KEY, "coefficient": 2.0},
            ("",),
            lambda v, h: h + 2.0 * v,
        )
        for site in CORE_SITES
    ),
    Kind(
        "low_rank_edit",
        "attention_heads",
        {"kind": "low_rank_edit", "layer": LAYER, "write_heads": "all", "factors": KEY, "strength": 2.0},
        (".a", ".b"),
        lambda a, b, h: h + 2.0 * (h @ a.T) @ b,
    ),
    Kind(
        "capping",
        "block_output",
        {"kind": "capping", "layer": LAYER, "direction": KEY, "min": 6.0},
        ("",),
        _capped,
    ),
    Kind(
        "ablation",
        "attention_output",
        {"kind": "ablation", "site": "attention_output", "layer": LAYER, "direction": KEY},
        ("",),
        _ablated,
    ),
    Kind(
        "scaling",
        "mlp_output",
        {"kind": "scaling", "site": "mlp_output", "layer": LAYER, "gains": KEY, "strength": 0.5},
        ("",),
        _scaled,
    ),
    Kind(
        "affine",
        "block_output",
        {"kind": "affine", "layer": LAYER, "map": KEY, "strength": 0.25},
        (".weight", ".bias"),
        _mapped,
    ),
    Kind(
        "rotation",
        "attention_output",
        {"kind": "rotation", "site": "attention_output", "layer": LAYER, "plane": KEY, "angle": 60.0},
        (".first", ".second"),
        _turned,
    ),
    Kind(
        "sae_feature",
        "block_output",
        {
            "kind": "sae_feature",
            "layer": LAYER,
            "sae": KEY | {"architecture": "standard"},
            "features": [3, 7],
            "do": "clamp",
            "value": [3.0, 0.5],
        },
        (".encoder", ".decoder", ".bias", ".shift"),
        _clamped,
    ),
    Kind(
        "pyvene_addition",
        "mlp_output",
        _pyvene("AdditionIntervention", site="mlp_output", source=KEY),
        ("",),
        lambda v, h: h + v,
    ),
    Kind(
        "pyvene_zero",
        "attention_heads",
        _pyvene("ZeroIntervention", site="attention_heads"),
        (),
        torch.zeros_like,
    ),
)
