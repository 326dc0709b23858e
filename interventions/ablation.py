"""Directional ablation: remove a direction from the activation (Arditi et al. 2024, arXiv:2406.11717)."""

from __future__ import annotations

from typing import Any, Self

import torch

from subvene.interventions.affine import Affine
from subvene.interventions.base import ActivationIntervention, unit
from subvene.interventions.formula import DirectionFormula
from subvene.interventions.tensors import Sizes, TensorTable, stored_name
from subvene.specs import AblationSpec


class AblationIntervention(ActivationIntervention):
    """h ← h − ⟨h, v̂⟩·v̂.

    Args:
        direction: any vector of shape [width]; it is brought to unit length.
        **kwargs: see `ActivationIntervention`; `strength` 1 removes the direction wholly.
    """

    kind = "ablation"
    buffer_names = ("direction",)
    linear_in_strength = True
    acts_alone = True

    def __init__(self, direction: torch.Tensor | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        direction = torch.zeros(0) if direction is None else unit(direction.detach().float())
        self.register_buffer("direction", direction)

    @classmethod
    def build(
        cls, spec: AblationSpec, table: TensorTable, sizes: Sizes
    ) -> list[tuple[str, int | None, Self]]:
        key = spec.direction.key
        built: list[tuple[str, int | None, Self]] = []
        for layer in table.one_or_all(spec.layer, key, spec.site):
            width = sizes.site_width(spec.site, layer)
            direction = table.get(key, spec.site, layer, shape=(width,), nonzero=True)
            edit = cls(direction, strength=torch.tensor(spec.strength), positions=spec.positions)
            built.append((spec.site, layer, edit))
        return built

    def stored(self, key: str, site: str, layer: int | None) -> dict[str, torch.Tensor]:
        return {stored_name(key, site, layer): self.direction}

    def delta(self, h: torch.Tensor) -> torch.Tensor:
        direction = self.direction.to(h.dtype)
        return -(h @ direction).unsqueeze(-1) * direction

    def affine(self) -> Affine:
        row = self.direction.unsqueeze(0)
        return Affine.linear(row, -row)

    def direction_formula(self) -> DirectionFormula:
        return DirectionFormula("remove", self.direction.detach().cpu().float())
