"""What evaluations have in common."""

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count, FiniteList, Seeds
from subvene.specs._flaws import Flaw, refuse


class BaseEvaluation(SpecModel):
    """One way of measuring an edited model; each adds its ``kind`` and its own fields."""

    expects: ClassVar[str] = "a mapping with `kind`"

    if TYPE_CHECKING:

        @property
        def kind(self) -> str:
            """By which files name it."""

    @property
    def compares(self) -> bool:
        """Whether it is measured of conditions; if not, it is a study of its own."""
        return False


class ConditionEvaluation(BaseEvaluation):
    """An evaluation that compares conditions, seeds and folds."""

    seeds: Seeds | None = Field(
        default=None, description="The seeds it is done for; left out: all of the experiment's."
    )

    @property
    def compares(self) -> bool:
        """Always."""
        return True

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the numbers that it gives of a condition."""
        return ()

    @property
    def choosing(self) -> tuple[str, ...]:
        """Those of its metrics by which `choose` may pick a point of a sweep."""
        return ()


class ChoosingEvaluation(ConditionEvaluation):
    """An evaluation of which a part may be set aside, for `choose` to pick points of sweeps by."""

    validation: Count | None = Field(
        default=None,
        description="So many of its items, the first ones, are for `choose` alone: no condition is tested on "
        "them.",
    )

    @property
    def choosing(self) -> tuple[str, ...]:
        """All of its metrics."""
        return self.metrics


class CoefficientEvaluation(ChoosingEvaluation):
    """An evaluation of conditions, or of several coefficients of one fit in a file without conditions."""

    coefficients: FiniteList | None = Field(
        default=None,
        description="Finite numbers, all different, that take the place of the interventions' strengths, one "
        "after the other; 0 is the untouched model. Left out: each condition is measured as it is declared.",
    )

    @property
    def compares(self) -> bool:
        """Without coefficients of its own."""
        return self.coefficients is None

    @property
    def swept(self) -> tuple[float, ...]:
        """The coefficients; none where conditions are measured."""
        return self.coefficients or ()

    @model_validator(mode="after")
    def _conditions_or_coefficients(self) -> Self:
        stray = [name for name in ("seeds", "validation") if getattr(self, name) is not None]
        if stray and self.coefficients is not None:
            expected = "nothing beside `coefficients`, since conditions have it"
            refuse(type(self).__name__, [Flaw((name,), expected, getattr(self, name)) for name in stray])
        return self
