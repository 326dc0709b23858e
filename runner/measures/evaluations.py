"""The evaluations by kind: an edited model in, records out. A new one is a new file and one line here."""

from __future__ import annotations

from collections.abc import Callable

from subvene.runner.measures.contrast import run_contrast
from subvene.runner.measures.divergence import run_divergence
from subvene.runner.measures.samples import run_samples

EVALUATIONS: dict[str, Callable[..., dict[str, object]]] = {
    "contrast": run_contrast,
    "divergence": run_divergence,
    "samples": run_samples,
}
