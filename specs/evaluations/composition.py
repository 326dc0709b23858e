"""Composition: several interventions together, in every order."""

from typing import Annotated, Literal

from annotated_types import MaxLen, MinLen
from pydantic import AfterValidator, Field

from subvene.specs._fields import Identifier, different
from subvene.specs._flaws import Expect
from subvene.specs.evaluations.base import ConditionEvaluation

FEWEST, MOST = 2, 3
"""Six orders of three interventions are what a table can show; four would have 24."""


class CompositionSpec(ConditionEvaluation):
    """Order-free error and order sensitivity of each metric (Kolbeinsson et al., 2025).

    Makes the conditions: the untouched model, each intervention alone, and all of them in every order. What
    is measured of them is what the other entries of `evaluate` say.
    """

    kind: Literal["composition"] = Field(
        default="composition", description="Interventions alone and together, in every order."
    )
    of: (
        Annotated[
            tuple[Identifier, ...],
            MinLen(FEWEST),
            MaxLen(MOST),
            AfterValidator(different),
            Expect(f"a list of {FEWEST} or {MOST} different names of interventions of this file"),
        ]
        | None
    ) = Field(
        default=None,
        description="The names of the interventions, two or three; left out: all of the file's. One without "
        "a name is called by its kind and place, `steering_0`.",
    )
