"""Measures of conditions: one arm on some items, as units of work, and the numbers that come of them.

A new one is a file here and a line in `MEASURES`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from subvene.runner.experiments.comparison.measures.base import (
    ConditionMeasure,
    Measured,
    Place,
    Progress,
    Session,
    check_complete,
    merged,
)
from subvene.runner.experiments.comparison.measures.contrast import ContrastMeasure
from subvene.runner.experiments.comparison.measures.divergence import DivergenceMeasure
from subvene.runner.experiments.comparison.measures.likelihood import LikelihoodMeasure
from subvene.runner.experiments.comparison.measures.lm_eval import LmEvalMeasure
from subvene.runner.experiments.comparison.measures.multiple_choice import MultipleChoiceMeasure
from subvene.runner.experiments.comparison.measures.refusals import RefusalsMeasure
from subvene.runner.experiments.comparison.measures.samples import SamplesMeasure
from subvene.runner.experiments.comparison.measures.trait_scores import TraitScoresMeasure
from subvene.runner.experiments.comparison.measures.truthfulqa import TruthfulQAMeasure

MEASURES: dict[str, Callable[[Any, Path], ConditionMeasure[Any]]] = {
    "truthfulqa": TruthfulQAMeasure,
    "divergence": DivergenceMeasure,
    "trait_scores": TraitScoresMeasure,
    "multiple_choice": MultipleChoiceMeasure,
    "contrast": ContrastMeasure,
    "samples": SamplesMeasure,
    "likelihood": LikelihoodMeasure,
    "refusals": RefusalsMeasure,
    "lm_eval": LmEvalMeasure,
}
"""By kind of evaluation: made of its spec and the folder that its files are relative to."""

__all__ = [
    "MEASURES",
    "ConditionMeasure",
    "DivergenceMeasure",
    "Measured",
    "Place",
    "Progress",
    "Session",
    "TruthfulQAMeasure",
    "check_complete",
    "merged",
]
