"""Logistic probes: the direction by which a classifier tells positive texts from negative ones."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from annotated_types import Gt
from pydantic import AllowInfNan, Field, Strict

from subvene.specs._flaws import Expect
from subvene.specs.recipes.contrasted import TOKENS, ContrastedRecipe


class LogisticSpec(ContrastedRecipe):
    """The weights of a logistic regression on the activations, layer by layer, of unit length."""

    methods: ClassVar[Mapping[str, str]] = {
        "probe weight direction": "Li et al. 2023, arXiv:2306.03341, section 4",
    }
    usual_intervention: ClassVar[str | None] = "steering"

    recipe: Literal["logistic"] = Field(default="logistic", description="A linear probe's direction.")
    center: Literal["pairs", "none"] = Field(
        default="pairs",
        description="`pairs`: activations minus the mean of their pair, without an intercept (the library "
        "steering-vectors); `none`: the activations as they are, with an intercept (ITI's probe weights), "
        "for texts that are not paired.",
    )
    inverse_penalty: Annotated[float, Strict(), Gt(0), AllowInfNan(False), Expect("a number above 0")] = (
        Field(default=1.0, description="scikit-learn's C: the smaller, the shorter the weights are held.")
    )
    tokens: Literal["last", "mean"] = Field(
        default="last", description=f"{TOKENS} steering-vectors reads the last one."
    )
