"""From cells (one condition, seed and fold each) to the rows of the published table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from subvene.runner.measures.missing import ASPECTS

METRICS: dict[str, str] = {
    "true": "True",
    "info": "Info",
    "true_info": "True×Info",
    "true_and_info": "True∧Info",
    "mc1": "MC1",
    "mc2": "MC2",
    "mc3": "MC3",
    "ce": "CE",
    "kl": "KL",
}
"""What is measured, in the order of the table, and what the table calls it."""
LOWER_IS_BETTER = ("ce", "kl")
"""From 0 without a bound; all others are in [0, 1], and more is better."""


def rows(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds and folds.

    A condition's cells are its (seed, fold) pairs. The mean weighs a fold by its questions, so that with one
    seed it is the mean over all questions; the deviation is that of the cells, with n − 1 below the root.

    Args:
        cells: `condition`, `label`, `point`, `seed`, `fold`, `questions` and `metrics` (name → number) each.

    Returns:
        One row per label, in the order in which the labels first come: `condition`, `label`, `point`;
        `metrics`: name → `mean`, `sd` (None for one cell) and `n`, the number of cells; and `missing`, how
        many verdicts the judge still owes. A row with a cell that is not finite has no metrics, and
        `not_finite` says why.
    """
    by_label: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        by_label.setdefault(cell["label"], []).append(cell)
    table = []
    for label, group in by_label.items():
        metrics = {}
        # A mean over the seeds and folds that stayed finite would be a mean over other questions.
        broken = next((cell["not_finite"] for cell in group if cell.get("not_finite")), None)
        for name in METRICS if broken is None else ():
            values = [
                (cell["metrics"][name], cell["questions"])
                for cell in group
                if cell["metrics"].get(name) is not None
            ]
            if values:
                metrics[name] = _summary(values)
        first = group[0]
        table.append(
            {
                "condition": first["condition"],
                "label": label,
                "point": first["point"],
                "metrics": metrics,
                "missing": sum(
                    cell["metrics"].get(f"{aspect}_missing") or 0 for cell in group for aspect in ASPECTS
                ),
            }
            | ({} if broken is None else {"not_finite": broken})
        )
    return table


def _summary(values: Sequence[tuple[float, int]]) -> dict[str, Any]:
    numbers = [value for value, _ in values]
    weights = [max(weight, 1) for _, weight in values]
    mean = sum(n * w for n, w in zip(numbers, weights, strict=True)) / sum(weights)
    return {"mean": mean, "sd": statistics.stdev(numbers) if len(numbers) > 1 else None, "n": len(numbers)}


def in_words(summary: Mapping[str, Any] | None, digits: int = 3) -> str:
    """`0.412 ± 0.013`, or a dash where nothing was measured."""
    if summary is None:
        return "–"
    mean = f"{summary['mean']:.{digits}f}"
    return mean if summary["sd"] is None else f"{mean} ± {summary['sd']:.{digits}f}"
