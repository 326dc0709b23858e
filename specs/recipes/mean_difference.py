"""Mean difference: a direction from contrast pairs."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from subvene.specs.recipes.contrasted import TOKENS, ContrastedRecipe


class MeanDifferenceSpec(ContrastedRecipe):
    """Mean activation over the positive texts minus the mean over the negative ones, layer by layer."""

    methods: ClassVar[Mapping[str, str]] = {
        "contrastive activation addition (CAA)": "Rimsky et al. 2024, arXiv:2312.06681",
    }
    usual_intervention: ClassVar[str | None] = "steering"

    recipe: Literal["mean_difference"] = Field(
        default="mean_difference", description="The difference of mean activations."
    )
    tokens: Literal["last", "mean"] = Field(default="mean", description=TOKENS)
