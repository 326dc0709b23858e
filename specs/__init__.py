"""What is declared: the files, checked before anything is loaded.

This package imports neither torch nor transformers.
"""

from subvene.specs.dumping import dump_spec
from subvene.specs.errors import Problem, SpecError, SubveneError
from subvene.specs.evaluations import AnyEvaluation, ContrastSpec, SamplesSpec
from subvene.specs.experiment import ExperimentSpec, InterventionSpec
from subvene.specs.interventions import (
    AblationSpec,
    AnyIntervention,
    CappingSpec,
    HeadDirectionSpec,
    LowRankEditSpec,
    PyveneSpec,
    SteeringSpec,
)
from subvene.specs.loading import load_pairs, load_spec, parse_spec, resolve_pairs
from subvene.specs.model import ModelSpec
from subvene.specs.pairs import ContrastSystems, ContrastTexts, PairsFile, SystemPair, TextPair
from subvene.specs.positions import FirstTokens, LastTokens, Positions, TokenIndices
from subvene.specs.recipes import AnyRecipe, MeanDifferenceSpec
from subvene.specs.schema import json_schema
from subvene.specs.sites import SITES, Site
from subvene.specs.tensors import TensorName, TensorRef, parse_tensor_name, tensor_name

__all__ = [
    "SITES",
    "AblationSpec",
    "AnyEvaluation",
    "AnyIntervention",
    "AnyRecipe",
    "CappingSpec",
    "ContrastSpec",
    "ContrastSystems",
    "ContrastTexts",
    "ExperimentSpec",
    "FirstTokens",
    "HeadDirectionSpec",
    "InterventionSpec",
    "LastTokens",
    "LowRankEditSpec",
    "MeanDifferenceSpec",
    "ModelSpec",
    "PairsFile",
    "Positions",
    "Problem",
    "PyveneSpec",
    "SamplesSpec",
    "Site",
    "SpecError",
    "SteeringSpec",
    "SubveneError",
    "SystemPair",
    "TensorName",
    "TensorRef",
    "TextPair",
    "TokenIndices",
    "dump_spec",
    "json_schema",
    "load_pairs",
    "load_spec",
    "parse_spec",
    "parse_tensor_name",
    "resolve_pairs",
    "tensor_name",
]
