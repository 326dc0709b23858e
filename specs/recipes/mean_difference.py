"""Mean difference: a direction from contrast pairs."""

from typing import ClassVar, Literal

from pydantic import Field

from subvene.specs._fields import AllOrIndices, Count
from subvene.specs.pairs import ContrastPairs
from subvene.specs.recipes.base import OneKeyRecipe
from subvene.specs.sites import Site


class MeanDifferenceSpec(OneKeyRecipe):
    """Mean activation over the positive texts minus the mean over the negative ones, layer by layer."""

    usual_intervention: ClassVar[str | None] = "steering"
    data_field: ClassVar[str | None] = "pairs"

    recipe: Literal["mean_difference"] = Field(
        default="mean_difference", description="The difference of mean activations."
    )
    site: Site = Field(default="block_output", description="Where the activations are read.")
    layers: AllOrIndices = Field(
        default="all", description="0-based indices of the decoder blocks that are read, or `all`."
    )
    pairs: ContrastPairs = Field(
        description="`texts`, `systems` with `questions`, or a `file` that holds one of the two."
    )
    tokens: Literal["last", "mean"] = Field(
        default="mean",
        description="`mean` averages over the tokens of the contrasted text (without the first token of the "
        "whole sequence, an attention sink whose norm drowns all others), `last` takes its last token.",
    )
    batch_size: Count = Field(default=16, description="Texts per forward pass.")
    max_tokens: Count | None = Field(
        default=None,
        description="The first so many tokens of each text are read; texts that this cuts are counted, and "
        "`tokens: last` refuses to read a cut text. Left out: whole texts, which must fit the model.",
    )
