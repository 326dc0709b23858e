"""What evaluations have in common."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from subvene.specs._base import SpecModel
from subvene.specs._fields import FiniteList, Seeds
from subvene.specs.facts import Facts


class BaseEvaluation(SpecModel):
    """One way of measuring an edited model; each adds its ``kind`` and its own fields."""

    expects: ClassVar[str] = "a mapping with `kind`"


class CoefficientEvaluation(BaseEvaluation):
    """An evaluation that looks at several coefficients of one fit."""

    coefficients: FiniteList = Field(
        description="Finite numbers, all different, that take the place of the interventions' strengths, one "
        "after the other; 0 is the untouched model."
    )


class ConditionEvaluation(BaseEvaluation):
    """An evaluation that compares conditions, seeds and folds."""

    seeds: Seeds | None = Field(
        default=None, description="The seeds it is done for; left out: all of the experiment's."
    )


class TracingEvaluation(BaseEvaluation):
    """An evaluation of the model as it is, whose own states are put into other runs of it."""

    facts: Facts = Field(description="The facts: a `file` of them, or `facts` written out.")
