"""A kind of intervention from outside the tree: its spec, and classes that say more or less of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import pytest
import torch
from pydantic import Field

from subvene.interventions import REGISTRY, ActivationIntervention, Affine, Sizes, TensorTable
from subvene.specs import Site, TensorRef
from subvene.specs.interventions import REGISTRY as SPECS
from subvene.specs.interventions import BaseIntervention


class OutsideSpec(BaseIntervention):
    """Adds what there is along a direction: h ← h + s·|⟨h, v̂⟩|·v̂."""

    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {"layer": 1, "direction": {"key": "v"}}}

    kind: Literal["outside"] = Field(default="outside", description="Add what there is along a direction.")
    site: Site = Field(default="block_output", description="Where.")
    layer: int = Field(default=1, description="0-based block.")
    direction: TensorRef = Field(default=TensorRef(key="v"), description="The direction.")
    strength: float = Field(default=2.0, description="s.")


class Outside(ActivationIntervention):
    """h ← h + s·|⟨h, v̂⟩|·v̂: neither affine nor one of the formulas, and nothing is said of it."""

    kind = "outside"
    buffer_names = ("direction",)

    def __init__(self, direction: torch.Tensor | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        direction = torch.zeros(0) if direction is None else direction / direction.norm()
        self.register_buffer("direction", direction)

    @classmethod
    def build(cls, spec: OutsideSpec, table: TensorTable, sizes: Sizes) -> list[tuple[str, int | None, Self]]:
        direction = table.get(spec.direction.key, spec.site, spec.layer, shape=(sizes.site_width(spec.site),))
        edit = cls(direction, strength=torch.tensor(spec.strength), positions=spec.positions)
        return [(spec.site, spec.layer, edit)]

    def stored(self, key: str, site: str, layer: int | None) -> dict[str, torch.Tensor]:
        return {f"{key}.{site}[{layer}]": self.direction}

    def delta(self, h: torch.Tensor) -> torch.Tensor:
        v = self.direction.to(h.dtype)
        return (h @ v).abs().unsqueeze(-1) * v


class Amplifying(Outside):
    """h ← h + s·⟨h, v̂⟩·v̂, and it says so."""

    linear_in_strength = True

    def delta(self, h: torch.Tensor) -> torch.Tensor:
        v = self.direction.to(h.dtype)
        return (h @ v).unsqueeze(-1) * v

    def affine(self) -> Affine:
        return Affine.linear(self.direction.unsqueeze(0), self.direction.unsqueeze(0))


class Whole(Amplifying):
    """h ← h + s·⟨h, v̂⟩·v̂, and it says all that there is to say."""

    acts_alone = True


def register(monkeypatch: pytest.MonkeyPatch, cls: type[ActivationIntervention]) -> None:
    """What the two registry lines of a new kind do, for as long as a test runs."""
    monkeypatch.setitem(SPECS, "outside", OutsideSpec)
    monkeypatch.setitem(REGISTRY, "outside", cls)
