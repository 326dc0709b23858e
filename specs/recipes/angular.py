"""Angular: the plane in which a behaviour's direction lies, for rotations."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from subvene.specs.recipes.contrasted import TOKENS, ContrastedRecipe


class AngularSpec(ContrastedRecipe):
    """One plane for all layers, of the directions that the layers give (Angular Steering)."""

    usual_intervention: ClassVar[str | None] = "rotation"
    methods: ClassVar[Mapping[str, str]] = {"Angular Steering": "Vu and Nguyen 2025, arXiv:2510.26243"}

    recipe: Literal["angular"] = Field(default="angular", description="A plane for rotations.")
    first: Literal["max_sim", "max_norm"] = Field(
        default="max_sim",
        description="Which layer's direction is the plane's first: `max_sim`, that of the highest mean "
        "cosine with those of all layers; `max_norm`, the longest one.",
    )
    tokens: Literal["last", "mean"] = Field(
        default="last", description=f"{TOKENS} The published code reads the last one."
    )
