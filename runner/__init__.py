"""What makes it run: models, compilation, generation, receipts, artifacts, recipes, and the command line.

The names here are imported when they are first used, so that commands which need no model start at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subvene.runner.artifact import ArtifactError
    from subvene.runner.cache_record import CacheError
    from subvene.runner.experiment import run_experiment
    from subvene.runner.exports.base import ExportError
    from subvene.runner.exports.driver import export
    from subvene.runner.fitting import fit
    from subvene.runner.hub_errors import HubError
    from subvene.runner.intervened import IntervenedModel
    from subvene.runner.model import load_model
    from subvene.runner.not_finite import NotFiniteError
    from subvene.runner.positions import PositionError
    from subvene.runner.receipt import NotSteeredError, Receipt
    from subvene.runner.scopes import ConcurrentRunError

_HOME = {
    "ArtifactError": "artifact",
    "CacheError": "cache_record",
    "ConcurrentRunError": "scopes",
    "ExportError": "exports.base",
    "HubError": "hub_errors",
    "IntervenedModel": "intervened",
    "NotFiniteError": "not_finite",
    "NotSteeredError": "receipt",
    "PositionError": "positions",
    "Receipt": "receipt",
    "export": "exports.driver",
    "fit": "fitting",
    "load_model": "model",
    "run_experiment": "experiment",
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
    "export",
    "fit",
    "load_model",
    "run_experiment",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
