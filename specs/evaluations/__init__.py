"""The evaluations. A new one is a new file, a line in ``_KINDS``, and its class in ``AnyEvaluation``."""

import importlib
from typing import TYPE_CHECKING, Annotated, Any

from subvene.specs._flaws import Registered
from subvene.specs._registry import Kinds
from subvene.specs.evaluations.base import (
    BaseEvaluation,
    ChoosingEvaluation,
    CoefficientEvaluation,
    ConditionEvaluation,
)

if TYPE_CHECKING:
    from subvene.specs.evaluations.causal_tracing import CausalTracingSpec
    from subvene.specs.evaluations.composition import CompositionSpec
    from subvene.specs.evaluations.contrast import ContrastSpec
    from subvene.specs.evaluations.divergence import DivergenceSpec, TextsSpec
    from subvene.specs.evaluations.interchange import InterchangeSpec
    from subvene.specs.evaluations.likelihood import LikelihoodSpec
    from subvene.specs.evaluations.lm_eval import LmEvalSpec
    from subvene.specs.evaluations.localization import LocalizationSpec
    from subvene.specs.evaluations.multiple_choice import MultipleChoiceSpec
    from subvene.specs.evaluations.patching import PatchingSpec
    from subvene.specs.evaluations.refusals import RefusalsSpec
    from subvene.specs.evaluations.samples import SamplesSpec
    from subvene.specs.evaluations.tracing import TracingEvaluation
    from subvene.specs.evaluations.trait_scores import ProjectionSpec, TraitScoresSpec
    from subvene.specs.evaluations.traits import TraitConditionsSpec, TraitEvaluation, TraitSweepSpec
    from subvene.specs.evaluations.truthfulqa import TruthfulQASpec

_KINDS = {
    "samples": "samples:SamplesSpec",
    "contrast": "contrast:ContrastSpec",
    "truthfulqa": "truthfulqa:TruthfulQASpec",
    "divergence": "divergence:DivergenceSpec",
    "trait_scores": "trait_scores:TraitScoresSpec",
    "multiple_choice": "multiple_choice:MultipleChoiceSpec",
    "likelihood": "likelihood:LikelihoodSpec",
    "refusals": "refusals:RefusalsSpec",
    "lm_eval": "lm_eval:LmEvalSpec",
    "composition": "composition:CompositionSpec",
    "trait_sweep": "traits:TraitSweepSpec",
    "trait_conditions": "traits:TraitConditionsSpec",
    "localization": "localization:LocalizationSpec",
    "causal_tracing": "causal_tracing:CausalTracingSpec",
    "patching": "patching:PatchingSpec",
    "interchange": "interchange:InterchangeSpec",
}
REGISTRY = Kinds(__name__, _KINDS)
"""By `kind`; each is imported when a file has one."""

if TYPE_CHECKING:
    AnyEvaluation = (
        SamplesSpec
        | ContrastSpec
        | TruthfulQASpec
        | DivergenceSpec
        | TraitScoresSpec
        | MultipleChoiceSpec
        | LikelihoodSpec
        | RefusalsSpec
        | LmEvalSpec
        | CompositionSpec
        | TraitSweepSpec
        | TraitConditionsSpec
        | LocalizationSpec
        | CausalTracingSpec
        | PatchingSpec
        | InterchangeSpec
    )
else:
    AnyEvaluation = Annotated[BaseEvaluation, Registered("kind", REGISTRY)]

__all__ = [
    "AnyEvaluation",
    "BaseEvaluation",
    "CausalTracingSpec",
    "ChoosingEvaluation",
    "CoefficientEvaluation",
    "CompositionSpec",
    "ConditionEvaluation",
    "ContrastSpec",
    "DivergenceSpec",
    "InterchangeSpec",
    "LikelihoodSpec",
    "LmEvalSpec",
    "LocalizationSpec",
    "MultipleChoiceSpec",
    "PatchingSpec",
    "ProjectionSpec",
    "RefusalsSpec",
    "SamplesSpec",
    "TextsSpec",
    "TracingEvaluation",
    "TraitConditionsSpec",
    "TraitEvaluation",
    "TraitScoresSpec",
    "TraitSweepSpec",
    "TruthfulQASpec",
]

_LATER = {cls: module for module, _, cls in (place.partition(":") for place in _KINDS.values())}
_LATER |= {"ProjectionSpec": "trait_scores", "TextsSpec": "divergence", "TracingEvaluation": "tracing"}
_LATER |= {"TraitEvaluation": "traits"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
