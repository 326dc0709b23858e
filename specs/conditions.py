"""Conditions: the named arms of an experiment."""

from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import AfterValidator, Field, JsonValue

from subvene.specs._base import SpecModel
from subvene.specs._fields import Finite, Identifier, Seeds, Text, different
from subvene.specs._flaws import Expect, Shaped

_NAMES = "`all`, or a list of different names of interventions of this file"


class ChooseSpec(SpecModel):
    """How the best point of a sweep is found: on validation items, never on those of the test."""

    expects = "a mapping with `by`"

    by: Text = Field(
        description="The metric that is to be largest on the validation items: of truthfulqa (`true_info` is "
        "True×Info), of contrast, or of trait_scores (`formal_score`)."
    )
    at_least: dict[Text, Finite] = Field(
        default={},
        description="Metrics of the same evaluation with the least value that a point must have there to be "
        "taken, such as `{formal_coherence: 50}`.",
    )


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
