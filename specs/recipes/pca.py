"""PCA: the axis along which pairs of texts differ most."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from subvene.specs.recipes.contrasted import TOKENS, ContrastedRecipe


class PCASpec(ContrastedRecipe):
    """The first principal axis of contrast pairs, layer by layer, of unit length (repeng's directions)."""

    methods: ClassVar[Mapping[str, str]] = {
        "representation engineering, as repeng has it": "Zou et al. 2023, arXiv:2310.01405",
    }
    usual_intervention: ClassVar[str | None] = "steering"

    recipe: Literal["pca"] = Field(default="pca", description="The first principal axis.")
    of: Literal["center", "diff"] = Field(
        default="center",
        description="`center`: of both texts of every pair, each minus the pair's mean (repeng's "
        "`pca_center`), which is where pairs differ most. `diff`: of the differences within pairs minus "
        "their own mean (repeng's `pca_diff`), which is where the differences differ from one another; what "
        "all pairs have in common is taken out. For both, the sign is that by which more pairs have their "
        "positive text above their negative one.",
    )
    tokens: Literal["last", "mean"] = Field(
        default="last", description=f"{TOKENS} repeng reads the last one."
    )
