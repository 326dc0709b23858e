"""Affine maps: from the activations of one kind of texts to those of another."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from subvene.specs._flaws import Flaw, refuse
from subvene.specs.recipes.contrasted import TOKENS, ContrastedRecipe

FORMS: Mapping[str, str] = {
    "linear_act": "diagonal",
    "mean_act": "diagonal",
    "gaussian": "diagonal",
    "least_squares": "dense",
}
"""What W is, by how it is fitted."""


class AffineMapSpec(ContrastedRecipe):
    """Maps activations of the negative texts onto those of the positive ones (Linear-AcT, INCLINE)."""

    usual_intervention: ClassVar[str | None] = "affine"
    methods: ClassVar[Mapping[str, str]] = {
        "Linear-AcT, Mean-AcT": "Rodriguez et al. 2024, arXiv:2410.23054",
        "INCLINE": "Wang et al. 2024, arXiv:2410.12462",
    }

    recipe: Literal["affine_map"] = Field(default="affine_map", description="A map between two sets.")
    by: Literal["linear_act", "mean_act", "gaussian", "least_squares"] = Field(
        default="linear_act",
        description="`linear_act`: of every column, the line that is nearest to the optimal transport, which "
        "takes the k-th smallest negative activation to the k-th smallest positive one; `mean_act`: the "
        "difference of means is added; `gaussian`: of every column, mean and spread become those of the "
        "positive texts; `least_squares`: one matrix, nearest to what takes each negative text to the "
        "positive one of its pair (INCLINE). The first three are `form: diagonal`, the last `dense`.",
    )
    around: Literal["zero", "identity"] = Field(
        default="zero",
        description="Of `least_squares`: what the matrix is where the texts say nothing, as they do in all "
        "but so many dimensions as there are pairs; `zero`, as published, takes away what is there, and "
        "`identity` leaves it.",
    )
    tokens: Literal["last", "mean"] = Field(
        default="mean", description=f"{TOKENS} Linear-AcT takes the mean, INCLINE reads the last one."
    )

    @model_validator(mode="after")
    def _fields_of_the_way(self) -> Self:
        if self.around != "zero" and self.by != "least_squares":
            refuse(
                "AffineMapSpec", [Flaw(("around",), "nothing but beside `by: least_squares`", self.around)]
            )
        return self

    @classmethod
    def usual_fields(cls, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """The form of the map."""
        return {"form": FORMS.get(fields.get("by", "linear_act"), "dense")}
