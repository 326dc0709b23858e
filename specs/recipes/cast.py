"""CAST: a condition vector, and the layer, threshold and side at which it tells two kinds of prompts."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from subvene.specs._fields import Fraction
from subvene.specs.recipes.contrasted import TOKENS, ContrastedRecipe


class CastSpec(ContrastedRecipe):
    """What opens a gate for prompts of one kind and not of another (conditional activation steering)."""

    methods: ClassVar[Mapping[str, str]] = {
        "conditional activation steering (CAST)": "Lee et al. 2024, arXiv:2409.05907",
    }

    recipe: Literal["cast"] = Field(
        default="cast", description="A gate: condition vector, layer, threshold and side."
    )
    tokens: Literal["last", "mean"] = Field(
        default="mean", description=f"{TOKENS} The gate has to say the same. The authors take the mean."
    )
    measure: Literal["cast", "cosine", "projection"] = Field(
        default="cast",
        description="What is compared with the threshold; the gate has to say the same. `cast` is the "
        "authors'.",
    )
    direction: Literal["pca", "mean_difference"] = Field(
        default="pca",
        description="How the vector comes about: the first principal axis of both kinds' activations minus "
        "the mean of the two kinds' means (the paper's), or the difference of the means.",
    )
    held_out: Fraction = Field(
        default=0.5,
        description="The share of the texts by which layer, threshold and side are chosen; the vectors are "
        "made of the others.",
    )
