"""The numbers of the one condition that an artifact is, for its card."""

from __future__ import annotations

from subvene.runner.experiments.results import Results
from subvene.runner.experiments.rows import METRICS
from subvene.runner.files.markdown import in_cell


def own_numbers(results: Results, place: str | None) -> str:
    """A sentence for each condition that was kept in a place, before the table of all; empty without one.

    Args:
        results: of a run.
        place: where the artifact lies in the run (`artifacts/edit_probed`).
    """
    lines = []
    for condition in results.conditions:
        if place is None or condition.artifact != place:
            continue
        parts = {"seed": condition.seed, "fold": condition.fold}
        where = ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None)
        metrics = {METRICS.get(name, name): metric.mean for name, metric in condition.metrics.items()}
        values = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        which = f"{in_cell(condition.label)}{where and f' ({where})'}"
        if values:
            lines.append(f"This folder is **{which}** of the run below: {values}.\n\n")
    return "".join(lines)
