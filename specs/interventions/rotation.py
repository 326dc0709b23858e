"""Rotation: turn the activation to an angle within a plane, as angular steering does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le
from pydantic import Field

from subvene.specs._fields import Finite, Index, Strength
from subvene.specs._flaws import Expect
from subvene.specs.interventions.base import LAYER, STRENGTH, BaseIntervention
from subvene.specs.sites import Site
from subvene.specs.tensors import TensorRef

_EXAMPLE: dict[str, Any] = {"layer": 1, "plane": {"key": "p"}, "angle": 60.0}
Degrees = Annotated[Finite, Ge(-360), Le(360), Expect("a number of degrees from -360 to 360")]


class RotationSpec(BaseIntervention):
    """Turns the activation's part in a plane to an angle: h ← h + s·(‖P·h‖·u_θ − P·h)."""

    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": _EXAMPLE,
        ", `adaptive: aligned`": _EXAMPLE | {"adaptive": "aligned"},
    }

    kind: Literal["rotation"] = Field(default="rotation", description="Turn to an angle within a plane.")
    site: Site = Field(default="block_output", description="The tensor that is turned.")
    layer: Index | None = Field(
        default=None, description=f"{LAYER} Left out: every layer that `plane` holds at the site."
    )
    plane: TensorRef = Field(
        description="Two vectors that span the plane, `{key}.{site}[{layer}].first` and `.second`, both "
        "[width of the site]: the direction of a behaviour, from which angles are counted, and another one, "
        "of which what is along the first is taken away."
    )
    angle: Degrees = Field(
        description="θ, in degrees from the first direction towards the second: 0 along the first, 180 "
        "against it. Where the activation's part in the plane points already does not matter."
    )
    adaptive: Literal["none", "aligned"] = Field(
        default="none",
        description="`aligned` turns the activations alone whose projection on the first direction is "
        "positive; `none` all of them.",
    )
    strength: Strength = Field(
        default=1.0,
        description=f"s; 1 turns wholly and keeps the norm, 0.5 goes half of the straight way. {STRENGTH}",
    )

    @property
    def reads_whole_key(self) -> bool:
        """Every stored layer, unless it names its own."""
        return self.layer is None
