"""ITI: truthful directions at the attention heads where a probe finds them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Gt, MinLen
from pydantic import AllowInfNan, Field, Strict

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count, Fraction, Indices, LayerKey, Seed
from subvene.specs._flaws import Expect, Named
from subvene.specs.questions import QuestionsSpec
from subvene.specs.recipes.base import OneKeyRecipe


class _Selection(SpecModel):
    expects: ClassVar[str] = "a mapping with `rule`"


class TopHeads(_Selection):
    """The heads whose probes are best on the validation questions."""

    rule: Literal["top_k"] = Field(default="top_k", description="The best by validation accuracy.")
    k: Count = Field(default=48, description="How many heads, over all layers.")


class RandomHeads(_Selection):
    """Heads drawn at random: what a localization is to be compared with."""

    rule: Literal["random"] = Field(default="random", description="Drawn at random.")
    k: Count = Field(default=48, description="How many heads, over all layers.")
    seed: Seed | None = Field(default=None, description="Seed of the draw; left out: the experiment's.")


class ListedHeads(_Selection):
    """Given heads."""

    rule: Literal["list"] = Field(default="list", description="Given heads.")
    heads: Annotated[
        dict[LayerKey, Indices], MinLen(1), Expect("a non-empty mapping from layers to lists of heads")
    ] = Field(description="0-based layer → list of 0-based query heads.")


class AllHeads(_Selection):
    """Every head."""

    rule: Literal["all"] = Field(default="all", description="Every head of every layer.")


class SoftHeads(_Selection):
    """Every head, weighted by how much better than chance its probe is."""

    rule: Literal["soft"] = Field(
        default="soft",
        description="Every head, its direction multiplied by ((accuracy - chance) / (best - chance))^power, "
        "0 below chance; chance is the share of the commoner label.",
    )
    power: Annotated[float, Strict(), Gt(0), AllowInfNan(False), Expect("a number above 0")] = Field(
        default=1.0, description="The larger it is, the more the best heads count."
    )


Selection = Annotated[TopHeads | RandomHeads | ListedHeads | AllHeads | SoftHeads, Named("rule")]


class ITISpec(OneKeyRecipe):
    """Inference-time intervention (Li et al., 2023): probe every head, shift the best along its direction."""

    immaterial: ClassVar[frozenset[str]] = frozenset({"data", "batch_size"})

    usual_intervention: ClassVar[str | None] = "head_direction"
    data_field: ClassVar[str | None] = "data"
    dataset_field: ClassVar[str | None] = "name"

    recipe: Literal["iti"] = Field(default="iti", description="Inference-time intervention.")
    data: QuestionsSpec = Field(
        default=QuestionsSpec.of_defaults(), description="The questions with their answers."
    )
    select: Selection = Field(default=TopHeads.of_defaults(), description="Which heads are shifted.")
    direction: Literal["mass_mean", "probe_weight", "random"] = Field(
        default="mass_mean",
        description="`mass_mean`: mean of true minus mean of false activations; `probe_weight`: the linear "
        "probe's weights; `random`: drawn at random, as a control. Always of unit length.",
    )
    probe: Literal["linear", "mlp"] = Field(
        default="linear",
        description="What ranks the heads: logistic regression, or a perceptron with one hidden layer "
        "(NL-ITI).",
    )
    last_n: Count = Field(
        default=1,
        description="Tokens at the end of the answer whose mean activation is probed; 1: the last token.",
    )
    validation: Fraction = Field(
        default=0.2, description="Share of the tuning questions, whole questions, that ranks the heads."
    )
    batch_size: Count = Field(default=64, description="Texts per forward pass.")

    @property
    def learns_from(self) -> QuestionsSpec:
        """All that it learns from."""
        return self.data
