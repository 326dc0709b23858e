"""Conditions: the named arms of an experiment."""

from typing import Annotated, Literal, Self

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, AllowInfNan, Field, JsonValue, Strict, model_validator

from subvene.specs._base import SpecModel
from subvene.specs._fields import Finite, Identifier, Seeds, Text, different
from subvene.specs._flaws import Expect, Flaw, Shaped, refuse

_NAMES = "`all`, or a list of different names of interventions of this file"


Above0 = Annotated[float, Strict(), Gt(0), AllowInfNan(False), Expect("a number above 0")]


class BudgetSpec(SpecModel):
    """How far a condition may be from the untouched model: its strengths are those that take it there.

    All its interventions' strengths are multiplied by one number, which is searched for.
    """

    expects = "a mapping with `kl`"

    kl: Above0 = Field(
        description="KL(untouched ‖ condition), nats per token, on the texts that the entry `divergence` of "
        "`evaluate` sets aside (its `validation`)."
    )
    within: Annotated[
        float, Strict(), Gt(0), Lt(1), AllowInfNan(False), Expect("a share between 0 and 1, both left out")
    ] = Field(default=0.05, description="How far from `kl` the search may end, as a share of it.")
    least: Above0 = Field(
        default=1 / 64, description="The smallest multiple of the declared strengths that is tried."
    )
    most: Above0 = Field(
        default=64.0, description="The largest multiple of the declared strengths that is tried."
    )
    evaluations: Annotated[int, Strict(), Ge(2), Le(1000), Expect("an integer from 2 to 1000")] = Field(
        default=24, description="At most so many strengths are tried."
    )

    @model_validator(mode="after")
    def _around_1(self) -> Self:
        if not self.least <= 1 <= self.most:
            name, value = ("most", self.most) if self.most < 1 else ("least", self.least)
            expected = "a multiple on its side of 1, the declared strengths, with which the search begins"
            refuse("BudgetSpec", [Flaw((name,), expected, value)])
        return self


class ChooseSpec(SpecModel):
    """How the best point of a sweep is found: on validation items, never on those of the test."""

    expects = "a mapping with `by`, `budget` or both"

    by: Text | None = Field(
        default=None,
        description="The metric that is to be largest on the validation items: of truthfulqa (`true_info` is "
        "True×Info), of contrast, or of trait_scores (`formal_score`). Left out only beside `budget`, where "
        "there is no sweep.",
    )
    budget: BudgetSpec | None = Field(
        default=None,
        description="Bring every point to the same divergence from the untouched model by its strength "
        "first. A condition that cannot be brought there is reported without numbers.",
    )
    at_least: dict[Text, Finite] = Field(
        default={},
        description="Metrics of the same evaluation with the least value that a point must have there to be "
        "taken, such as `{formal_coherence: 50}`.",
    )

    @model_validator(mode="after")
    def _chooses_something(self) -> Self:
        if self.by is None:
            flaws = []
            if self.budget is None:
                flaws.append(Flaw(("by",), "a metric, or a `budget`", None, "missing_field"))
            if self.at_least:
                flaws.append(Flaw(("at_least",), "nothing, since there is no `by`", dict(self.at_least)))
            if flaws:
                refuse("ChooseSpec", flaws)
        return self


class ConditionSpec(SpecModel):
    """One arm of an experiment: the file's interventions, some of them, none, or others of their fields."""

    expects = "a mapping with `name`"

    name: Identifier = Field(description="What tables call it; unique within a file.")
    like: Identifier | None = Field(
        default=None,
        description="An earlier condition that this one starts from, with the values chosen for it.",
    )
    interventions: Annotated[
        Annotated[Literal["all"], Expect(_NAMES)]
        | Annotated[tuple[Identifier, ...], AfterValidator(different), Expect(_NAMES)],
        Shaped(lambda value: 1 if isinstance(value, list | tuple) else 0, _NAMES),
    ] = Field(
        default="all",
        description="The names of the interventions that act, in the order in which they do; an empty list "
        "is the untouched model, `all` the file's interventions in the file's order.",
    )
    system: Text | None = Field(
        default=None,
        description="A system prompt before everything that the model is given in this condition: "
        "in the chat template where there is one, as a paragraph of its own before plain texts. With "
        "`interventions: []` it is all that the condition does.",
    )
    set: dict[Text, JsonValue] = Field(
        default={},
        description="Fields with their values in this condition: `NAME.field` of the intervention NAME, or "
        "`fit.field`.",
    )
    sweep: (
        dict[Text, Annotated[tuple[JsonValue, ...], MinLen(1), Expect("a non-empty list of values")]] | None
    ) = Field(
        default=None,
        description="Fields with the values that they take in turn; several fields make a grid, and every "
        "point of it is a condition of its own unless `choose` picks one.",
    )
    choose: ChooseSpec | None = Field(
        default=None, description="Pick one point of the sweep for each seed and fold."
    )
    seeds: Seeds | None = Field(
        default=None, description="The seeds it is measured for; left out: all of the experiment's."
    )
    bake: bool = Field(
        default=False,
        description="Measure the ordinary checkpoint that these interventions are baked into, as "
        "AutoModelForCausalLM loads it.",
    )
