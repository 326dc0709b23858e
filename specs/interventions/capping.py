"""Capping: keep the projection on a direction within bounds."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from subvene.specs._fields import Finite, Index, Strength
from subvene.specs._flaws import Flaw, refuse
from subvene.specs.interventions.base import LAYER, STRENGTH, BaseIntervention
from subvene.specs.sites import Site
from subvene.specs.tensors import TensorRef


class CappingSpec(BaseIntervention):
    """Bounds the projection p = ⟨h, v̂⟩: h ← h − s·max(p − max, 0)·v̂ and h ← h + s·max(min − p, 0)·v̂."""

    also_called: ClassVar[dict[str, str]] = {**BaseIntervention.also_called, "vector": "direction"}

    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"layer": 1, "direction": {"key": "v"}, "min": 1.0}
    }

    kind: Literal["capping"] = Field(default="capping", description="Bound the projection on a direction.")
    site: Site = Field(default="block_output", description="The tensor whose projection is bounded.")
    layer: Index = Field(description=LAYER)
    direction: TensorRef = Field(
        description="The direction, `{key}.{site}[{layer}]` of shape [width of the site]; its length does "
        "not matter."
    )
    max: Finite | None = Field(default=None, description="Upper bound of p, in the units of the activations.")
    min: Finite | None = Field(
        default=None, description="Lower bound of p, in the units of the activations; at most `max`."
    )
    strength: Strength = Field(default=1.0, description=f"s. {STRENGTH}")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.max is None and self.min is None:
            refuse("CappingSpec", [Flaw(("max",), "`max`, `min` or both", None, "missing_field")])
        if self.max is not None and self.min is not None and self.min > self.max:
            refuse("CappingSpec", [Flaw(("min",), f"a number <= max, which is {self.max}", self.min)])
        return self

    @property
    def reads_whole_key(self) -> bool:
        """Only what is stored for its layer."""
        return False
