"""What is declared: the files, checked before anything is loaded.

This package imports neither torch nor transformers.
"""

from subvene.specs.composition import Composition, composition
from subvene.specs.conditions import ChooseSpec, ConditionSpec
from subvene.specs.dumping import dump_spec
from subvene.specs.errors import Problem, SpecError, SubveneError
from subvene.specs.evaluations import (
    AnyEvaluation,
    CompositionSpec,
    ConditionEvaluation,
    ContrastSpec,
    DivergenceSpec,
    LocalizationSpec,
    SamplesSpec,
    TextsSpec,
    TraitConditionsSpec,
    TraitSweepSpec,
    TruthfulQASpec,
)
from subvene.specs.experiment import ExperimentSpec, InterventionSpec
from subvene.specs.interventions import *  # noqa: F403 - the spec of every kind
from subvene.specs.interventions import REGISTRY as _REGISTRY
from subvene.specs.interventions import AnyIntervention
from subvene.specs.judges import (
    AnyJudge,
    OpenAIJudgeSpec,
    ReferenceJudgeSpec,
    TrainedJudgeSpec,
    TransformersJudgeSpec,
)
from subvene.specs.loading import load_pairs, load_spec, parse_spec, resolve_pairs
from subvene.specs.model import ModelSpec
from subvene.specs.pairs import ContrastSystems, ContrastTexts, PairsFile, SystemPair, TextPair
from subvene.specs.positions import (
    FieldTokens,
    FirstTokens,
    LastOf,
    LastTokens,
    Positions,
    SpanTokens,
    TokenIndices,
)
from subvene.specs.preferences import TriplesSpec, TruthfulPairsSpec
from subvene.specs.questions import QuestionsSpec
from subvene.specs.recipes import AnyRecipe, ITISpec, LocalizedEditSpec, MeanDifferenceSpec, PersonaSpec
from subvene.specs.sampling import SamplingSpec
from subvene.specs.schema import json_schema
from subvene.specs.sites import SITES, Site
from subvene.specs.sources import SourceRef, SourceSpec
from subvene.specs.tensors import TensorName, TensorRef, parse_tensor_name, tensor_name
from subvene.specs.traits import SHIPPED_TRAITS, TraitSpec, trait_name
from subvene.specs.variants import intervention_name, points, variant

__all__ = [
    "SHIPPED_TRAITS",
    "SITES",
    "AnyEvaluation",
    "AnyIntervention",
    "AnyJudge",
    "AnyRecipe",
    "ChooseSpec",
    "Composition",
    "CompositionSpec",
    "ConditionEvaluation",
    "ConditionSpec",
    "ContrastSpec",
    "ContrastSystems",
    "ContrastTexts",
    "DivergenceSpec",
    "ExperimentSpec",
    "FieldTokens",
    "FirstTokens",
    "ITISpec",
    "InterventionSpec",
    "LastOf",
    "LastTokens",
    "LocalizationSpec",
    "LocalizedEditSpec",
    "MeanDifferenceSpec",
    "ModelSpec",
    "OpenAIJudgeSpec",
    "PairsFile",
    "PersonaSpec",
    "Positions",
    "Problem",
    "QuestionsSpec",
    "ReferenceJudgeSpec",
    "SamplesSpec",
    "SamplingSpec",
    "Site",
    "SourceRef",
    "SourceSpec",
    "SpanTokens",
    "SpecError",
    "SubveneError",
    "SystemPair",
    "TensorName",
    "TensorRef",
    "TextPair",
    "TextsSpec",
    "TokenIndices",
    "TrainedJudgeSpec",
    "TraitConditionsSpec",
    "TraitSpec",
    "TraitSweepSpec",
    "TransformersJudgeSpec",
    "TriplesSpec",
    "TruthfulPairsSpec",
    "TruthfulQASpec",
    "composition",
    "dump_spec",
    "intervention_name",
    "json_schema",
    "load_pairs",
    "load_spec",
    "parse_spec",
    "parse_tensor_name",
    "points",
    "resolve_pairs",
    "tensor_name",
    "trait_name",
    "variant",
]
__all__ += [cls.__name__ for cls in _REGISTRY.values()]
