"""Contrast: how the model's preference between two answers moves with the coefficient, without a judge."""

from typing import Literal

from pydantic import Field

from subvene.specs._fields import Count
from subvene.specs.evaluations.base import CoefficientEvaluation
from subvene.specs.pairs import ContrastTextPairs


class ContrastSpec(CoefficientEvaluation):
    """Mean log-probability of the trait-consistent answers minus that of the opposed ones."""

    kind: Literal["contrast"] = Field(
        default="contrast", description="Log-probability of trait-consistent minus trait-opposed answers."
    )
    pairs: ContrastTextPairs = Field(
        description="`texts`, or a `file` that holds them; `positive` is the trait-consistent answer."
    )
    batch_size: Count = Field(default=16, description="Texts per forward pass.")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The mean difference in nats, and the share of pairs whose consistent answer is the likelier."""
        return ("contrast", "contrast_preferred")
