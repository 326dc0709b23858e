"""What makes it run: models, compilation, generation, receipts, artifacts, recipes, and the command line.

The names here are imported when they are first used, so that commands which need no model start at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subvene.runner.artifacts.artifact import ArtifactError
    from subvene.runner.artifacts.hub_errors import HubError
    from subvene.runner.edits.cache_record import CacheError
    from subvene.runner.edits.not_finite import NotFiniteError
    from subvene.runner.edits.positions import PositionError
    from subvene.runner.edits.receipt import NotSteeredError, Receipt
    from subvene.runner.edits.scopes import ConcurrentRunError
    from subvene.runner.exchange.exports.base import ExportError
    from subvene.runner.exchange.exports.driver import export
    from subvene.runner.experiments.results import Results
    from subvene.runner.intervened.model import IntervenedModel
    from subvene.runner.models.loading import load_model
    from subvene.runner.recipes.fitting import fit
    from subvene.runner.reports.experiment import run_experiment

_HOME = {
    "ArtifactError": "artifacts.artifact",
    "CacheError": "edits.cache_record",
    "ConcurrentRunError": "edits.scopes",
    "ExportError": "exchange.exports.base",
    "HubError": "artifacts.hub_errors",
    "IntervenedModel": "intervened.model",
    "NotFiniteError": "edits.not_finite",
    "NotSteeredError": "edits.receipt",
    "PositionError": "edits.positions",
    "Receipt": "edits.receipt",
    "Results": "experiments.results",
    "export": "exchange.exports.driver",
    "fit": "recipes.fitting",
    "load_model": "models.loading",
    "run_experiment": "reports.experiment",
}

__all__ = [
    "ArtifactError",
    "CacheError",
    "ConcurrentRunError",
    "ExportError",
    "HubError",
    "IntervenedModel",
    "NotFiniteError",
    "NotSteeredError",
    "PositionError",
    "Receipt",
    "Results",
    "export",
    "fit",
    "load_model",
    "run_experiment",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
