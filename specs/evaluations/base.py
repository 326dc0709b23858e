"""What every evaluation has: the coefficients at which it looks."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from subvene.specs._base import SpecModel
from subvene.specs._fields import FiniteList


class BaseEvaluation(SpecModel):
    """One way of measuring an edited model; each adds its ``kind`` and its own fields."""

    expects: ClassVar[str] = "a mapping with `kind`"

    coefficients: FiniteList = Field(
        description="Finite numbers, all different, that take the place of the interventions' strengths, one "
        "after the other; 0 is the untouched model."
    )
