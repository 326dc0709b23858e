"""Rotation within a plane (Angular Steering: Vu and Nguyen 2025, arXiv:2510.26243).

The form is that of the authors' code (github.com/lone17/angular-steering, `AngularSteeringOperator.steer` in
vllm_angular_steering.py): h − P·h + ‖P·h‖·u_θ, and, adaptive, only where ⟨h, b₁⟩ > 0. A turn *to* an angle,
not *by* one, so that the same number means the same for every activation.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch

from subvene.interventions.base import ActivationIntervention, unit
from subvene.interventions.tensors import Sizes, TensorError, TensorTable, stored_name
from subvene.specs import RotationSpec

_PARALLEL = 1e-6
"""Sine of the angle between two vectors that span no plane in float32."""


class RotationIntervention(ActivationIntervention):
    """h ← h + ‖P·h‖·u_θ − P·h with P = b₁b₁ᵀ + b₂b₂ᵀ and u_θ = cos θ·b₁ + sin θ·b₂.

    Args:
        first: any vector along b₁, [width].
        second: another vector, [width]; b₂ is what of it is orthogonal to b₁, of unit length.
        angle: θ, in degrees.
        aligned: turn activations with ⟨h, b₁⟩ > 0 alone.
        **kwargs: see `ActivationIntervention`; `strength` 1 turns wholly.
    """

    kind = "rotation"
    buffer_names = ("first", "second", "plane", "target")
    linear_in_strength = True
    acts_alone = True

    def __init__(
        self,
        first: torch.Tensor | None = None,
        second: torch.Tensor | None = None,
        angle: float = 0.0,
        *,
        aligned: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(options={"aligned": aligned}, **kwargs)
        plane, target = torch.zeros(2, 0), torch.zeros(0)
        if first is not None and second is not None:
            plane = _orthonormal(first.detach().double(), second.detach().double())
            theta = math.radians(angle)
            target = torch.tensor([math.cos(theta), math.sin(theta)], dtype=torch.float64) @ plane
        # As they were given, so that what is stored and read again is the same plane to the last bit.
        for name, vector in (("first", first), ("second", second)):
            self.register_buffer(name, torch.zeros(0) if vector is None else vector.detach().float())
        self.register_buffer("plane", plane.float())
        self.register_buffer("target", target.float())

    @classmethod
    def build(
        cls, spec: RotationSpec, table: TensorTable, sizes: Sizes
    ) -> list[tuple[str, int | None, Self]]:
        key = spec.plane.key
        layers = table.one_or_all(spec.layer, key, spec.site, "first")
        return [(spec.site, layer, cls._at(spec, layer, table, sizes)) for layer in layers]

    @classmethod
    def _at(cls, spec: RotationSpec, layer: int, table: TensorTable, sizes: Sizes) -> Self:
        shape, key = (sizes.site_width(spec.site, layer),), spec.plane.key
        first, second = (
            table.get(key, spec.site, layer, part=part, shape=shape, nonzero=True)
            for part in ("first", "second")
        )
        if float(_across(first.double(), second.double()).norm() / second.double().norm()) < _PARALLEL:
            name = stored_name(key, spec.site, layer, "second")
            raise TensorError(f"{table.origin}: tensor {name!r} is along the first, and they span no plane")
        return cls(
            first,
            second,
            spec.angle,
            aligned=spec.adaptive == "aligned",
            strength=torch.tensor(spec.strength),
            positions=spec.positions,
        )

    def stored(self, key: str, site: str, layer: int | None) -> dict[str, torch.Tensor]:
        return {stored_name(key, site, layer, part): getattr(self, part) for part in ("first", "second")}

    def delta(self, h: torch.Tensor) -> torch.Tensor:
        plane = self.plane.to(h.dtype)
        within = h @ plane.T
        length = torch.linalg.vector_norm(within, dim=-1, keepdim=True)
        turned = length * self.target.to(h.dtype) - within @ plane
        return torch.where(within[..., :1] > 0, turned, 0) if self.options.get("aligned") else turned

    @property
    def depends_on_activation(self) -> bool:
        return True

    @property
    def expects_change(self) -> bool:
        # Where nothing is aligned, nothing has to be turned; the receipt's count of changed tokens says so.
        return not self.options.get("aligned")


def _across(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """What of the second vector is orthogonal to the first."""
    b = unit(first)
    return second - (second @ b) * b


def _orthonormal(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """b₁ and b₂, [2, width]."""
    return torch.stack([unit(first), unit(_across(first, second))])
