"""Declared interventions on language models: what most programs need, under one name.

>>> from subvene import IntervenedModel, fit

Importing this loads neither torch nor transformers: a name is imported when it is first used. Everything else
is in `subvene.specs` (what is declared), `subvene.interventions` (what acts) and `subvene.runner` (what makes
it run).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subvene.runner import ArtifactError as ArtifactError
    from subvene.runner import CacheError as CacheError
    from subvene.runner import ConcurrentRunError as ConcurrentRunError
    from subvene.runner import ExportError as ExportError
    from subvene.runner import HubError as HubError
    from subvene.runner import IntervenedModel as IntervenedModel
    from subvene.runner import NotFiniteError as NotFiniteError
    from subvene.runner import NotSteeredError as NotSteeredError
    from subvene.runner import PositionError as PositionError
    from subvene.runner import Receipt as Receipt
    from subvene.runner import Results as Results
    from subvene.runner import export as export
    from subvene.runner import fit as fit
    from subvene.runner import load_model as load_model
    from subvene.runner import run_experiment as run_experiment
    from subvene.specs import ExperimentSpec as ExperimentSpec
    from subvene.specs import InterventionSpec as InterventionSpec
    from subvene.specs import SpecError as SpecError
    from subvene.specs import SubveneError as SubveneError
    from subvene.specs import json_schema as json_schema
    from subvene.specs import load_spec as load_spec

    __version__: str

# Written out, not taken from `runner.__all__`: who needs specs or classes alone must not load the runner.
_OF_RUNNER = (
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
)
_OF_SPECS = ("ExperimentSpec", "InterventionSpec", "SpecError", "SubveneError", "json_schema", "load_spec")
_PARTS = ("interventions", "runner", "specs")

__all__ = [
    *_OF_RUNNER,
    *_OF_SPECS,
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("subvene")
    if name in _PARTS:
        return importlib.import_module(f"{__name__}.{name}")
    for part, names in (("specs", _OF_SPECS), ("runner", _OF_RUNNER)):
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{part}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_PARTS})
