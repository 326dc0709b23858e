"""ITI: truthful directions at the attention heads where a probe finds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, MinLen
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


Ranking = Annotated[
    Literal["cross_validation", "split"],
    Field(
        description="How probes are held against answers that they were not fitted on: `cross_validation`, "
        "every question once, in folds of whole questions; `split`: one share of them, `validation`, as "
        "published."
    ),
]
RankingFolds = Annotated[
    Annotated[int, Strict(), Ge(2), Le(100), Expect("an integer from 2 to 100")],
    Field(description="Folds of the cross-validation that ranks the heads."),
]
Selection = Annotated[TopHeads | RandomHeads | ListedHeads | AllHeads | SoftHeads, Named("rule")]


class ITISpec(OneKeyRecipe):
    """Inference-time intervention (Li et al., 2023): probe every head, shift the best along its direction."""

    immaterial: ClassVar[frozenset[str]] = frozenset({"data", "batch_size"})

    methods: ClassVar[Mapping[str, str]] = {
        "inference-time intervention (ITI)": "Li et al. 2023, arXiv:2306.03341",
        "NL-ITI": "Hoscilowicz et al. 2024, arXiv:2403.18680",
    }
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
    probe: Literal["linear", "mlp", "nl_iti"] = Field(
        default="linear",
        description="What ranks the heads: logistic regression; a perceptron with one hidden layer as wide "
        "as a head, on standardised activations; or the perceptron of NL-ITI (Hoscilowicz et al., 2024): 16 "
        "hidden units, batch normalisation, 10 epochs of Adam, of which the one that is best on the held-out "
        "answers counts.",
    )
    last_n: Count = Field(
        default=1,
        description="Tokens at the end of the answer, and for σ at the end of the question after it, whose "
        "mean activation is read; 1: the last token.",
    )
    direction_last_n: Count | None = Field(
        default=None,
        description="As `last_n`, for directions and σ alone, where the probes read other tokens (NL-ITI: 4 "
        "for the probes, 6 for these); left out: `last_n`.",
    )
    periods: Literal["as_written", "stripped"] = Field(
        default="as_written",
        description="`as_written`: answers end as they do in the data, with a period or without; `stripped`: "
        "without, as earlier versions read them.",
    )
    ranking: Ranking = "cross_validation"
    ranking_folds: RankingFolds = 5
    validation: Fraction = Field(
        default=0.2,
        description="Share of the tuning questions, whole questions, by which `choose` picks a point of a "
        "sweep, with fits that have not seen them; and by which `ranking: split` ranks the heads.",
    )
    batch_size: Count = Field(default=64, description="Texts per forward pass.")

    @property
    def learns_from(self) -> QuestionsSpec:
        """All that it learns from."""
        return self.data
