"""The evaluations. A new one is a new file here and one line in ``AnyEvaluation``."""

from typing import Annotated

from subvene.specs._flaws import Named
from subvene.specs.evaluations.base import BaseEvaluation
from subvene.specs.evaluations.contrast import ContrastSpec
from subvene.specs.evaluations.samples import SamplesSpec

AnyEvaluation = Annotated[
    SamplesSpec | ContrastSpec,
    Named("kind"),
]

__all__ = ["AnyEvaluation", "BaseEvaluation", "ContrastSpec", "SamplesSpec"]
