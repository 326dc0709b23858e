"""Measuring an edited model: model in, records out. A new evaluation is a new file and one line here."""

from collections.abc import Callable
from typing import Any

from subvene.runner.measures.contrast import run_contrast
from subvene.runner.measures.divergence import run_divergence
from subvene.runner.measures.samples import run_samples

EVALUATIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "contrast": run_contrast,
    "divergence": run_divergence,
    "samples": run_samples,
}

__all__ = ["EVALUATIONS"]
