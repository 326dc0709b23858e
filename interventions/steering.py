"""Steering: add a fixed vector (persona vectors, Chen et al. 2025; contrastive activation addition)."""

from __future__ import annotations

from typing import Any, Self

import torch

from subvene.interventions.base import ActivationIntervention, unit
from subvene.interventions.tensors import Sizes, TensorTable, stored_name
from subvene.specs import SteeringSpec


class SteeringIntervention(ActivationIntervention):
    """h ← h + c·v.

    Args:
        vector: v, shape [width], in the units of the activation at its site; it keeps its norm.
        **kwargs: see `ActivationIntervention`; `strength` is the coefficient c.
    """

    kind = "steering"
    buffer_names = ("vector",)

    def __init__(self, vector: torch.Tensor | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_buffer("vector", torch.zeros(0) if vector is None else vector.detach().float())

    @classmethod
    def build(
        cls, spec: SteeringSpec, table: TensorTable, sizes: Sizes
    ) -> list[tuple[str, int | None, Self]]:
        width, unit_length = sizes.site_width(spec.site), spec.normalize == "unit"
        vector = table.get(spec.vector.key, spec.site, spec.layer, shape=(width,), nonzero=unit_length)
        if unit_length:
            vector = unit(vector)
        return [
            (
                spec.site,
                spec.layer,
                cls(vector, strength=torch.tensor(spec.coefficient), positions=spec.positions),
            )
        ]

    def stored(self, key: str, site: str, layer: int | None) -> dict[str, torch.Tensor]:
        return {stored_name(key, site, layer): self.vector}

    def delta(self, h: torch.Tensor) -> torch.Tensor:
        return self.vector

    @property
    def is_additive(self) -> bool:
        return True
