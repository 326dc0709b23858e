"""The evaluations. A new one is a new file, a line in ``_KINDS``, and its class in ``AnyEvaluation``."""

import importlib
from typing import TYPE_CHECKING, Annotated, Any

from subvene.specs._flaws import Registered
from subvene.specs._registry import Kinds
from subvene.specs.evaluations.base import (
    BaseEvaluation,
    CoefficientEvaluation,
    ConditionEvaluation,
    TracingEvaluation,
)

if TYPE_CHECKING:
    from subvene.specs.evaluations.causal_tracing import CausalTracingSpec
    from subvene.specs.evaluations.composition import CompositionSpec
    from subvene.specs.evaluations.contrast import ContrastSpec
    from subvene.specs.evaluations.divergence import DivergenceSpec, TextsSpec
    from subvene.specs.evaluations.localization import LocalizationSpec
    from subvene.specs.evaluations.patching import PatchingSpec
    from subvene.specs.evaluations.samples import SamplesSpec
    from subvene.specs.evaluations.traits import TraitConditionsSpec, TraitEvaluation, TraitSweepSpec
    from subvene.specs.evaluations.truthfulqa import TruthfulQASpec

_KINDS = {
    "samples": "samples:SamplesSpec",
    "contrast": "contrast:ContrastSpec",
    "truthfulqa": "truthfulqa:TruthfulQASpec",
    "divergence": "divergence:DivergenceSpec",
    "composition": "composition:CompositionSpec",
    "trait_sweep": "traits:TraitSweepSpec",
    "trait_conditions": "traits:TraitConditionsSpec",
    "localization": "localization:LocalizationSpec",
    "causal_tracing": "causal_tracing:CausalTracingSpec",
    "patching": "patching:PatchingSpec",
}
REGISTRY = Kinds(__name__, _KINDS)
"""By `kind`; each is imported when a file has one."""

if TYPE_CHECKING:
    AnyEvaluation = (
        SamplesSpec
        | ContrastSpec
        | TruthfulQASpec
        | DivergenceSpec
        | CompositionSpec
        | TraitSweepSpec
        | TraitConditionsSpec
        | LocalizationSpec
        | CausalTracingSpec
        | PatchingSpec
    )
else:
    AnyEvaluation = Annotated[BaseEvaluation, Registered("kind", REGISTRY)]

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

_LATER = {cls: module for module, _, cls in (place.partition(":") for place in _KINDS.values())}
_LATER |= {"TextsSpec": "divergence", "TraitEvaluation": "traits"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
