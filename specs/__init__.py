"""What is declared: the files, checked before anything is loaded.

This package imports neither torch nor transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from subvene.specs.composition import Composition, composition
from subvene.specs.conditions import BudgetSpec, ChooseSpec, ConditionSpec
from subvene.specs.engine import EngineSpec, VllmOptions
from subvene.specs.errors import Problem, SpecError, SubveneError
from subvene.specs.experiment import ExperimentSpec, InterventionSpec
from subvene.specs.interventions import *  # noqa: F403 - the spec of every kind
from subvene.specs.interventions import REGISTRY as _REGISTRY
from subvene.specs.interventions import AnyIntervention
from subvene.specs.loading import load_spec, parse_spec, spec_of
from subvene.specs.model import ModelSpec
from subvene.specs.positions import (
    FieldTokens,
    FirstTokens,
    LastOf,
    LastTokens,
    Positions,
    SpanTokens,
    TokenIndices,
)
from subvene.specs.questions import QuestionsSpec
from subvene.specs.sites import CORE_SITES, SITES, CoreSite, Site
from subvene.specs.sources import SourceRef, SourceSpec
from subvene.specs.tensors import TensorName, TensorRef, is_cell_key, parse_tensor_name, tensor_name
from subvene.specs.variants import intervention_name, points, system_prompt, variant

if TYPE_CHECKING:
    from subvene.specs.data_files import load_facts, load_pairs, resolve_facts, resolve_pairs
    from subvene.specs.dumping import dump_spec
    from subvene.specs.evaluations import (
        AnyEvaluation,
        CausalTracingSpec,
        CompositionSpec,
        ConditionEvaluation,
        ContrastSpec,
        DivergenceSpec,
        InterchangeSpec,
        LikelihoodSpec,
        LmEvalSpec,
        LocalizationSpec,
        MultipleChoiceSpec,
        PatchingSpec,
        ProjectionSpec,
        RefusalsSpec,
        SamplesSpec,
        TextsSpec,
        TraitConditionsSpec,
        TraitScoresSpec,
        TraitSweepSpec,
        TruthfulQASpec,
    )
    from subvene.specs.facts import Fact, FactsFile, InlineFacts
    from subvene.specs.judges import (
        AnyJudge,
        OpenAIJudgeSpec,
        ReferenceJudgeSpec,
        TrainedJudgeSpec,
        TransformersJudgeSpec,
    )
    from subvene.specs.pairs import (
        ContrastPrompts,
        Contrasts,
        ContrastSystems,
        ContrastTexts,
        PairsFile,
        SystemPair,
        TextPair,
    )
    from subvene.specs.preferences import TriplesSpec, TruthfulPairsSpec
    from subvene.specs.recipes import (
        AffineMapSpec,
        AngularSpec,
        AnyRecipe,
        CastSpec,
        DASSpec,
        ExpertsSpec,
        ITISpec,
        LocalizedEditSpec,
        LogisticSpec,
        MeanDifferenceSpec,
        PCASpec,
        PersonaSpec,
        RandomDirectionSpec,
        ReFTSpec,
        RefusalSpec,
        TransferSpec,
    )
    from subvene.specs.sampling import SamplingSpec
    from subvene.specs.schema import json_schema
    from subvene.specs.traits import SHIPPED_TRAITS, TraitSpec, trait_name

__all__ = [
    "CORE_SITES",
    "SHIPPED_TRAITS",
    "SITES",
    "AffineMapSpec",
    "AngularSpec",
    "AnyEvaluation",
    "AnyIntervention",
    "AnyJudge",
    "AnyRecipe",
    "BudgetSpec",
    "CastSpec",
    "CausalTracingSpec",
    "ChooseSpec",
    "Composition",
    "CompositionSpec",
    "ConditionEvaluation",
    "ConditionSpec",
    "ContrastPrompts",
    "ContrastSpec",
    "ContrastSystems",
    "ContrastTexts",
    "Contrasts",
    "CoreSite",
    "DASSpec",
    "DivergenceSpec",
    "EngineSpec",
    "ExperimentSpec",
    "ExpertsSpec",
    "Fact",
    "FactsFile",
    "FieldTokens",
    "FirstTokens",
    "ITISpec",
    "InlineFacts",
    "InterchangeSpec",
    "InterventionSpec",
    "LastOf",
    "LastTokens",
    "LikelihoodSpec",
    "LmEvalSpec",
    "LocalizationSpec",
    "LocalizedEditSpec",
    "LogisticSpec",
    "MeanDifferenceSpec",
    "ModelSpec",
    "MultipleChoiceSpec",
    "OpenAIJudgeSpec",
    "PCASpec",
    "PairsFile",
    "PatchingSpec",
    "PersonaSpec",
    "Positions",
    "Problem",
    "ProjectionSpec",
    "QuestionsSpec",
    "RandomDirectionSpec",
    "ReFTSpec",
    "ReferenceJudgeSpec",
    "RefusalSpec",
    "RefusalsSpec",
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
    "TraitScoresSpec",
    "TraitSpec",
    "TraitSweepSpec",
    "TransferSpec",
    "TransformersJudgeSpec",
    "TriplesSpec",
    "TruthfulPairsSpec",
    "TruthfulQASpec",
    "VllmOptions",
    "composition",
    "dump_spec",
    "intervention_name",
    "is_cell_key",
    "json_schema",
    "load_facts",
    "load_pairs",
    "load_spec",
    "parse_spec",
    "parse_tensor_name",
    "points",
    "resolve_facts",
    "resolve_pairs",
    "spec_of",
    "system_prompt",
    "tensor_name",
    "trait_name",
    "variant",
]
__all__ += [cls.__name__ for cls in _REGISTRY.values()]

# What few files need is imported when it is first asked for: `validate` is to start at once.
_LATER = {
    name: f"{__name__}.{module}"
    for module, names in {
        "data_files": ("load_facts", "load_pairs", "resolve_facts", "resolve_pairs"),
        "dumping": ("dump_spec",),
        "evaluations": (
            "AnyEvaluation",
            "CausalTracingSpec",
            "CompositionSpec",
            "ConditionEvaluation",
            "ContrastSpec",
            "DivergenceSpec",
            "InterchangeSpec",
            "LikelihoodSpec",
            "LmEvalSpec",
            "LocalizationSpec",
            "MultipleChoiceSpec",
            "ProjectionSpec",
            "PatchingSpec",
            "RefusalsSpec",
            "SamplesSpec",
            "TextsSpec",
            "TraitConditionsSpec",
            "TraitScoresSpec",
            "TraitSweepSpec",
            "TruthfulQASpec",
        ),
        "facts": ("Fact", "FactsFile", "InlineFacts"),
        "judges": (
            "AnyJudge",
            "OpenAIJudgeSpec",
            "ReferenceJudgeSpec",
            "TrainedJudgeSpec",
            "TransformersJudgeSpec",
        ),
        "pairs": (
            "ContrastPrompts",
            "ContrastSystems",
            "ContrastTexts",
            "Contrasts",
            "PairsFile",
            "SystemPair",
            "TextPair",
        ),
        "preferences": (
            "TriplesSpec",
            "TruthfulPairsSpec",
        ),
        "recipes": (
            "AffineMapSpec",
            "AngularSpec",
            "AnyRecipe",
            "CastSpec",
            "DASSpec",
            "ExpertsSpec",
            "ITISpec",
            "LocalizedEditSpec",
            "LogisticSpec",
            "MeanDifferenceSpec",
            "PCASpec",
            "PersonaSpec",
            "RandomDirectionSpec",
            "ReFTSpec",
            "RefusalSpec",
            "TransferSpec",
        ),
        "sampling": ("SamplingSpec",),
        "schema": ("json_schema",),
        "traits": (
            "SHIPPED_TRAITS",
            "TraitSpec",
            "trait_name",
        ),
    }.items()
    for name in names
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
