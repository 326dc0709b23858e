"""Transfer: a vector of one model, carried to another by a map fitted on what both make of the same texts."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from annotated_types import MinLen
from pydantic import Field, model_validator

from subvene.specs._fields import Count, Fraction, Identifier, Index, LayerKey
from subvene.specs._flaws import Expect, Flaw, refuse
from subvene.specs.conditions import Above0
from subvene.specs.evaluations.divergence import TextsSpec
from subvene.specs.model import ModelSpec
from subvene.specs.recipes.base import OneKeyRecipe
from subvene.specs.tensors import TensorRef


class TransferSpec(OneKeyRecipe):
    """Carries another model's vectors to this one by a linear map, fitted on the same texts in both."""

    methods: ClassVar[Mapping[str, str]] = {
        "linear representation transfer": "Bello et al. 2025, arXiv:2506.00653",
    }
    usual_intervention: ClassVar[str | None] = "steering"
    also_called: ClassVar[dict[str, str]] = {"of": "like", "native": "like", "from": "source"}

    recipe: Literal["transfer"] = Field(default="transfer", description="Another model's vector.")
    like: Identifier = Field(
        description="The key of an earlier fit of one vector a layer: the native vectors, which the carried "
        "ones are compared with and as long as, at the same site and layers."
    )
    source: ModelSpec = Field(
        description="The model that the vector comes from; it is in memory while the map is fitted."
    )
    vector: TensorRef | None = Field(
        default=None,
        description="The source's stored vectors, `{key}.{site}[{its layer}]` with the `file` that has them. "
        "Left out: the recipe of `like` is fitted on the source too, on the same data.",
    )
    by: Literal["least_squares", "none"] = Field(
        default="least_squares",
        description="`none` takes the source's vector as it is, which both models have to be as wide for: "
        "what a map is compared with.",
    )
    ridge: Above0 = Field(
        default=0.01,
        description="λ of the least squares, as a share of the mean variance of a column of the source's "
        "activations.",
    )
    tokens: Literal["aligned", "mean", "last"] = Field(
        default="aligned",
        description="What of a text is one row: `aligned`, every token but the first that ends at the same "
        "character in both tokenizers; `mean`, the text's mean without its first token; `last`, its last "
        "token.",
    )
    layers: (
        Annotated[
            dict[LayerKey, Index], MinLen(1), Expect("a mapping from layers of this model to the source's")
        ]
        | None
    ) = Field(
        default=None,
        description="The layers that get a vector, each with the source's layer that it comes from. Left "
        "out: all that `like` gives, each from the layer of the same relative depth.",
    )
    texts: TextsSpec = Field(
        default=TextsSpec.of_defaults(), description="The texts; left out: the sample that subvene ships."
    )
    limit: Count | None = Field(default=None, description="At most so many texts, the first ones.")
    held_out: Fraction = Field(
        default=0.2,
        description="The share of the texts, the last ones, that the map is not fitted on: how much of this "
        "model's variance it explains there is part of the provenance.",
    )
    max_tokens: Count = Field(
        default=128, description="The first so many tokens of each text are read, in either tokenizer."
    )
    batch_size: Count = Field(default=8, description="Texts per forward pass.")

    @model_validator(mode="after")
    def _vector_is_stored(self) -> Self:
        if self.vector is not None and self.vector.file is None:
            expected = "the file that holds the source's vectors"
            refuse("TransferSpec", [Flaw(("vector", "file"), expected, None, "missing_field")])
        return self

    @property
    def made_from(self) -> str:
        """The key of the fit that gives the native vectors."""
        return self.like
