"""The evaluations. A new one is a new file here and one line in ``AnyEvaluation``."""

from typing import Annotated

from subvene.specs._flaws import Named
from subvene.specs.evaluations.base import (
    BaseEvaluation,
    CoefficientEvaluation,
    ConditionEvaluation,
    TracingEvaluation,
)
from subvene.specs.evaluations.causal_tracing import CausalTracingSpec
from subvene.specs.evaluations.composition import CompositionSpec
from subvene.specs.evaluations.contrast import ContrastSpec
from subvene.specs.evaluations.divergence import DivergenceSpec, TextsSpec
from subvene.specs.evaluations.localization import LocalizationSpec
from subvene.specs.evaluations.patching import PatchingSpec
from subvene.specs.evaluations.samples import SamplesSpec
from subvene.specs.evaluations.traits import TraitConditionsSpec, TraitEvaluation, TraitSweepSpec
from subvene.specs.evaluations.truthfulqa import TruthfulQASpec

AnyEvaluation = Annotated[
    SamplesSpec
    | ContrastSpec
    | TruthfulQASpec
    | DivergenceSpec
    | CompositionSpec
    | TraitSweepSpec
    | TraitConditionsSpec
    | LocalizationSpec
    | CausalTracingSpec
    | PatchingSpec,
    Named("kind"),
]

__all__ = [
    "AnyEvaluation",
    "BaseEvaluation",
    "CausalTracingSpec",
    "CoefficientEvaluation",
    "CompositionSpec",
    "ConditionEvaluation",
    "ContrastSpec",
    "DivergenceSpec",
    "LocalizationSpec",
    "PatchingSpec",
    "SamplesSpec",
    "TextsSpec",
    "TracingEvaluation",
    "TraitConditionsSpec",
    "TraitEvaluation",
    "TraitSweepSpec",
    "TruthfulQASpec",
]
