"""Activation capping: bound the projection of an activation on a direction."""

from __future__ import annotations

import math
from typing import Any, Self

import torch

from subvene.interventions.base import ActivationIntervention, unit
from subvene.interventions.formula import DirectionFormula
from subvene.interventions.tensors import Sizes, TensorTable, stored_name
from subvene.specs import CappingSpec


class CappingIntervention(ActivationIntervention):
    """h ← h − max(p − τ_max, 0)·v̂ + max(τ_min − p, 0)·v̂ with p = ⟨h, v̂⟩.

    Args:
        direction: any vector of shape [width]; it is brought to unit length.
        ceiling: τ_max, or None for no upper bound; in the units of the activation.
        floor: τ_min, or None for no lower bound.
        **kwargs: see `ActivationIntervention`; `strength` 1 caps fully, 0.5 half-way.
    """

    kind = "capping"
    buffer_names = ("direction", "ceiling", "floor")
    linear_in_strength = True
    acts_alone = True

    def __init__(
        self,
        direction: torch.Tensor | None = None,
        ceiling: float | None = None,
        floor: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        direction = torch.zeros(0) if direction is None else unit(direction.detach().float())
        self.register_buffer("direction", direction)
        self.register_buffer("ceiling", torch.tensor(math.inf if ceiling is None else float(ceiling)))
        self.register_buffer("floor", torch.tensor(-math.inf if floor is None else float(floor)))

    @classmethod
    def build(cls, spec: CappingSpec, table: TensorTable, sizes: Sizes) -> list[tuple[str, int | None, Self]]:
        width = sizes.site_width(spec.site, spec.layer)
        direction = table.get(spec.direction.key, spec.site, spec.layer, shape=(width,), nonzero=True)
        strength = torch.tensor(spec.strength)
        edit = cls(direction, spec.max, spec.min, strength=strength, positions=spec.positions)
        return [(spec.site, spec.layer, edit)]

    def stored(self, key: str, site: str, layer: int | None) -> dict[str, torch.Tensor]:
        return {stored_name(key, site, layer): self.direction}

    def delta(self, h: torch.Tensor) -> torch.Tensor:
        direction = self.direction.to(h.dtype)
        p = (h @ direction).unsqueeze(-1)
        return (torch.clamp(p, min=self.floor.to(h.dtype), max=self.ceiling.to(h.dtype)) - p) * direction

    @property
    def expects_change(self) -> bool:
        # A cap that nothing exceeds is doing its work; the receipt's count of changed tokens says so.
        return False

    def direction_formula(self) -> DirectionFormula:
        vector = self.direction.detach().cpu().float()
        return DirectionFormula("bound", vector, float(self.floor), float(self.ceiling))
