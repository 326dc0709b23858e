"""Steering: add a vector, as persona vectors and contrastive activation addition do."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from subvene.specs._fields import Index, Strength
from subvene.specs._flaws import Flaw, refuse
from subvene.specs.interventions.base import LAYER, STRENGTH, BaseIntervention
from subvene.specs.sites import Site
from subvene.specs.tensors import TensorRef

_EXAMPLE: dict[str, Any] = {"layer": 1, "vector": {"key": "v"}, "coefficient": 1.0}


class SteeringSpec(BaseIntervention):
    """Adds a vector to the activations, as persona vectors and activation addition do: h ← h + c·v."""

    also_called: ClassVar[dict[str, str]] = {
        "strength": "coefficient",
        "scale": "coefficient",
        "layers": "layer",
        "direction": "vector",
    }

    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        " at `block_output`": _EXAMPLE,
        " at `block_output`, layer 0": _EXAMPLE | {"layer": 0},
        " at another site": _EXAMPLE | {"site": "attention_output"},
        ", other positions": _EXAMPLE | {"positions": "response"},
        ", `preserve_norm: true`": _EXAMPLE | {"preserve_norm": True},
        ", positions from the response's end": _EXAMPLE | {"positions": {"last": 1, "of": "response"}},
    }

    kind: Literal["steering"] = Field(default="steering", description="Add a vector.")
    site: Site = Field(default="block_output", description="The tensor that the vector is added to.")
    layer: Index = Field(description=LAYER)
    vector: TensorRef = Field(
        description="The vector v, `{key}.{site}[{layer}]` of shape [width of the site]."
    )
    coefficient: Strength = Field(description=f"c. {STRENGTH}")
    normalize: Literal["none", "unit"] = Field(
        default="none",
        description="`unit` divides v by its norm first; `none` keeps the norm it is stored with.",
    )

    preserve_norm: bool = Field(
        default=False,
        strict=True,
        description="Give the sum the norm that h had: h ← (h + c·v)·‖h‖/‖h + c·v‖. Other activations then "
        "move by other amounts, so that no bias can stand for it.",
    )
    unit: Literal["vector", "residual_norm"] = Field(
        default="vector",
        description="What c counts: `vector` the stored vector itself; `residual_norm` the typical norm of "
        "the activation at this layer (`{key}.{site}[{layer}].residual_norm`, which `fit: {recipe: persona}` "
        "measures), so that 0.5 adds a vector half as long as the activation, for every trait and model.",
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.unit == "residual_norm" and self.normalize == "unit":
            expected = "nothing, since `unit: residual_norm` sets the vector's length"
            refuse("SteeringSpec", [Flaw(("normalize",), expected, self.normalize)])
        return self

    @property
    def strength(self) -> float | tuple[float, ...]:
        """The coefficient, by the name that the other kinds give to it."""
        return self.coefficient

    @property
    def reads_whole_key(self) -> bool:
        """Only what is stored for its layer."""
        return False
