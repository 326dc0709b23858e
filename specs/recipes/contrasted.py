"""What recipes have in common that read positive and negative texts at a site of some layers."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from subvene.specs._fields import AllOrIndices, Count
from subvene.specs.pairs import ContrastPairs
from subvene.specs.recipes.base import OneKeyRecipe
from subvene.specs.sites import Site

TOKENS = (
    "`mean` averages over the tokens of the contrasted text (without the first token of the whole sequence, "
    "an attention sink whose norm drowns all others), `last` takes its last token."
)


class ContrastedRecipe(OneKeyRecipe):
    """Reads what two kinds of texts do to the activations."""

    data_field: ClassVar[str | None] = "pairs"

    site: Site = Field(default="block_output", description="Where the activations are read.")
    layers: AllOrIndices = Field(
        default="all", description="0-based indices of the decoder blocks that are read, or `all`."
    )
    pairs: ContrastPairs = Field(
        description="`texts`, `systems` with `questions`, `prompts` with two lists, or a `file` or `dataset` "
        "that holds one of these."
    )
    batch_size: Count = Field(default=16, description="Texts per forward pass.")
    max_tokens: Count | None = Field(
        default=None,
        description="The first so many tokens of each text are read; texts that this cuts are counted, and "
        "`tokens: last` refuses to read a cut text. Left out: whole texts, which must fit the model.",
    )

    if TYPE_CHECKING:

        @property
        def tokens(self) -> Literal["last", "mean", "max"]:
            """How the activations of a text's tokens become one."""
