"""Steering: add a fixed vector (persona vectors, Chen et al. 2025; contrastive activation addition)."""

from __future__ import annotations

from typing import Any, Self

import torch

from subvene.interventions.affine import Affine
from subvene.interventions.base import ActivationIntervention, unit
from subvene.interventions.formula import DirectionFormula
from subvene.interventions.tensors import Sizes, TensorTable, stored_name
from subvene.specs import SteeringSpec

RESIDUAL_NORM = "residual_norm"
"""The part of a tensor's name under which the typical norm of the activation at its place is stored."""


class SteeringIntervention(ActivationIntervention):
    """h ← h + c·v; with `preserve_norm` h ← (h + c·v)·‖h‖/‖h + c·v‖, so that it is turned and no longer.

    Args:
        vector: v, shape [width], in the units of the activation at its site.
        length: the length that v is brought to, its direction kept: 1 for a unit vector, the typical norm of
            the activation for `unit: residual_norm`; None: v keeps its own.
        preserve_norm: give the sum the norm that h had.
        **kwargs: see `ActivationIntervention`; `strength` is the coefficient c.
    """

    kind = "steering"
    buffer_names = ("vector", "length")
    linear_in_strength = True
    acts_alone = True

    def __init__(
        self,
        vector: torch.Tensor | None = None,
        length: float | torch.Tensor | None = None,
        *,
        preserve_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        # Told by an option, not by the length's value: reading that would wait for the device.
        options: dict[str, Any] = {"rescaled": length is not None}
        # Only where it is asked for, so that older states read as they did.
        super().__init__(options=options | ({"preserve_norm": True} if preserve_norm else {}), **kwargs)
        self.register_buffer("vector", torch.zeros(0) if vector is None else vector.detach().float())
        self.register_buffer("length", torch.tensor(1.0 if length is None else float(length)))

    @classmethod
    def build(
        cls, spec: SteeringSpec, table: TensorTable, sizes: Sizes
    ) -> list[tuple[str, int | None, Self]]:
        width, key, length = sizes.site_width(spec.site, spec.layer), spec.vector.key, None
        vector = table.get(key, spec.site, spec.layer, shape=(width,), nonzero=True)
        if spec.unit == "residual_norm":
            length = table.get(key, spec.site, spec.layer, shape=(), part=RESIDUAL_NORM, nonzero=True)
        elif spec.normalize == "unit":
            length = torch.tensor(1.0)
        edit = cls(
            vector,
            length,
            preserve_norm=spec.preserve_norm,
            strength=torch.tensor(spec.coefficient),
            positions=spec.positions,
        )
        edit.keeps_norm = spec.unit == "residual_norm"
        return [(spec.site, spec.layer, edit)]

    #: Whether an artifact needs the length too, because its spec counts in it.
    keeps_norm = False

    def stored(self, key: str, site: str, layer: int | None) -> dict[str, torch.Tensor]:
        kept = {stored_name(key, site, layer): self.vector}
        return kept | ({stored_name(key, site, layer, RESIDUAL_NORM): self.length} if self.keeps_norm else {})

    def delta(self, h: torch.Tensor) -> torch.Tensor:
        if not self.options.get("rescaled"):
            return self.vector
        return unit(self.vector) * self.length

    def constant_delta(self) -> torch.Tensor | None:
        return None if self.preserves_norm else self.delta(self.vector)

    def edit(self, h: torch.Tensor, scale: torch.Tensor, **context: Any) -> torch.Tensor:
        moved = super().edit(h, scale, **context)
        if not self.preserves_norm:
            return moved
        before, after = (torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (h, moved))
        # A sum of zero has no direction that could be given a length, and stays.
        return moved / after.clamp_min(torch.finfo(after.dtype).tiny) * before

    @property
    def preserves_norm(self) -> bool:
        """Whether the edited activation has the norm that it had."""
        return bool(self.options.get("preserve_norm"))

    @property
    def depends_on_activation(self) -> bool | None:
        return True if self.preserves_norm else super().depends_on_activation

    @property
    def instead(self) -> str | None:
        return "`preserve_norm: false`, which is another intervention" if self.preserves_norm else None

    def affine(self) -> Affine | None:
        return None if self.preserves_norm else Affine.constant(self.delta(self.vector))

    def direction_formula(self) -> DirectionFormula | None:
        if self.preserves_norm:
            return None
        return DirectionFormula("add", self.delta(self.vector).detach().cpu().float())

    def _read_settings(self) -> None:
        super()._read_settings()
        self.linear_in_strength = not self.preserves_norm
