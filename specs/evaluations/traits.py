"""Traits: how a persona vector moves what a model says, and what that costs."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from annotated_types import MinLen
from pydantic import Field, model_validator

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count, FiniteList, Identifier, Index, Indices
from subvene.specs._flaws import Expect, Flaw, Named, refuse
from subvene.specs.evaluations.base import BaseEvaluation
from subvene.specs.recipes.persona import Score
from subvene.specs.sampling import Sampling, SamplingSpec


class TraitEvaluation(BaseEvaluation):
    """An evaluation of every trait of `fit: {recipe: persona}` that a steering intervention names."""

    sampling: Sampling = Field(default=SamplingSpec.of_defaults(), description="How responses are generated.")
    questions: Count | None = Field(
        default=None, description="At most so many questions per trait; left out: all there are."
    )


class TraitChoice(SpecModel):
    """Which point of a sweep is taken."""

    expects: ClassVar[str] = "a mapping with `by`"

    by: Literal["score", "contrast"] = Field(
        description="What is to be largest: the mean trait score, or the judge-free contrast."
    )
    coherence: Score = Field(
        default=50.0, description="Only points whose mean coherence is at least this are taken."
    )


class TraitSweepSpec(TraitEvaluation):
    """Layers × coefficients: trait score, coherence and log-probability contrast, on the first questions."""

    kind: Literal["trait_sweep"] = Field(default="trait_sweep", description="Layers × coefficients.")
    layers: Indices = Field(
        description="0-based indices of the decoder blocks that are steered, one at a time."
    )
    coefficients: FiniteList = Field(
        description="Coefficients in the intervention's own unit; 0 is always among them."
    )
    questions: Count | None = Field(
        default=5,
        description="So many of each trait's evaluation questions, the first ones; `trait_conditions` of the "
        "same file leaves them out.",
    )
    contrasts: Count | None = Field(
        default=6,
        description="At most so many of the trait file's `contrasts`, the last ones: the log-probability of "
        "their trait-consistent answer minus that of the opposed one, per token, needs no judge.",
    )
    choose: TraitChoice | None = Field(
        default=None,
        description="Take the best point with a positive coefficient: its layer and coefficient replace the "
        "intervention's, in later evaluations and in the saved artifact.",
    )


class _TraitCondition(SpecModel):
    expects: ClassVar[str] = "a mapping with `kind`"

    name: Identifier | None = Field(default=None, description="What tables call it; left out: its kind.")


class Baseline(_TraitCondition):
    """The model as it is."""

    kind: Literal["baseline"] = Field(default="baseline", description="The model as it is.")


class Prompted(_TraitCondition):
    """A system prompt asks for the trait; nothing is edited."""

    kind: Literal["prompted"] = Field(default="prompted", description="A system prompt asks for the trait.")


class Opposed(_TraitCondition):
    """A system prompt asks for the trait's opposite; nothing is edited."""

    kind: Literal["opposed"] = Field(
        default="opposed", description="A system prompt asks for the trait's opposite."
    )


class Steered(_TraitCondition):
    """The vector is added."""

    kind: Literal["steered"] = Field(default="steered", description="The vector is added.")
    coefficients: FiniteList | None = Field(
        default=None,
        description="Coefficients in the intervention's own unit, each a condition; left out: its own.",
    )


LayerRange = Annotated[
    tuple[Index, Index], Expect("two layers, the first and the last of a range, both included")
]


class _OfLayers(_TraitCondition):
    layers: LayerRange | None = Field(
        default=None,
        description="The first and the last layer that are edited; left out: the intervention's layer.",
    )

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.layers is not None and self.layers[0] > self.layers[1]:
            expected = "two layers, the second one no smaller than the first"
            refuse(type(self).__name__, [Flaw(("layers",), expected, self.layers)])
        return self


class Capped(_OfLayers):
    """The projection on the vector is kept on one side of a threshold (activation capping)."""

    kind: Literal["capped"] = Field(default="capped", description="The projection is bounded.")
    bound: Literal["ceiling", "floor"] = Field(
        default="ceiling", description="`ceiling` lets the projection be no larger, `floor` no smaller."
    )
    percentile: Score = Field(
        default=25.0,
        description="The threshold: this percentile, layer by layer, of the projections of the response "
        "tokens of the condition `of`. A ceiling there changes 100 minus so many per cent of those tokens.",
    )
    of: Literal["baseline", "prompted", "opposed"] = Field(
        default="baseline", description="Whose responses the percentile is measured on."
    )


class Ablated(_OfLayers):
    """The direction is removed."""

    kind: Literal["ablated"] = Field(default="ablated", description="The direction is removed.")


TraitCondition = Annotated[Baseline | Prompted | Opposed | Steered | Capped | Ablated, Named("kind")]


class CostSpec(SpecModel):
    """What steering costs: KL and CE on neutral text, accuracy on multiple choice."""

    expects: ClassVar[str] = "a mapping with any of `texts`, `max_tokens`, `choices`"

    texts: Count = Field(default=20, description="So many of the neutral texts that subvene ships.")
    max_tokens: Count = Field(default=128, description="The first so many tokens of each text are read.")
    prompt_tokens: Count = Field(
        default=8,
        description="The first so many tokens of each text are its prompt: KL and CE are of what follows.",
    )
    choices: Count = Field(
        default=60, description="So many of the multiple-choice questions that subvene ships, at most 60."
    )


class TraitConditionsSpec(TraitEvaluation):
    """Baseline, prompted, steered, capped and ablated side by side: score, projection and cost."""

    kind: Literal["trait_conditions"] = Field(
        default="trait_conditions", description="Conditions side by side, on the remaining questions."
    )
    conditions: Annotated[
        tuple[TraitCondition, ...],
        MinLen(1),
        Expect("a non-empty list of conditions"),
    ] = Field(
        default=(Baseline.of_defaults(), Prompted.of_defaults(), Steered.of_defaults()),
        description="The conditions, in the table's order.",
    )
    cost: CostSpec | None = Field(
        default=CostSpec.of_defaults(), description="What is measured of the cost; null: nothing."
    )

    @model_validator(mode="after")
    def _different_names(self) -> Self:
        names = [condition.name or condition.kind for condition in self.conditions]
        for i, name in enumerate(names):
            if name in names[:i]:
                expected = f"a name of its own ({name!r} is taken)"
                refuse("TraitConditionsSpec", [Flaw(("conditions", i, "name"), expected, name)])
        kinds = {condition.kind for condition in self.conditions}
        for i, condition in enumerate(self.conditions):
            if isinstance(condition, Capped) and condition.of not in kinds:
                expected = f"a condition of this list: there is no {condition.of!r}"
                refuse("TraitConditionsSpec", [Flaw(("conditions", i, "of"), expected, condition.of)])
        return self
