"""Conditions: the named arms of an experiment."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import AfterValidator, Field, JsonValue

from subvene.specs._base import SpecModel
from subvene.specs._fields import Identifier, Seeds, Text, different
from subvene.specs._flaws import Expect, Shaped

_NAMES = "`all`, or a list of different names of interventions of this file"
_PATHS = "a non-empty mapping from fields, such as `iti.strength` or `fit.select.k`,"

METRICS = ("mc1", "mc2", "mc3", "true", "info", "true_info")


class ChooseSpec(SpecModel):
    """How the best point of a sweep is found: on validation questions, never on those of the test."""

    expects = "a mapping with `by`"

    by: Literal["mc1", "mc2", "mc3", "true", "info", "true_info"] = Field(
        description="The metric that is to be largest on the validation questions; `true_info` is True×Info."
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
