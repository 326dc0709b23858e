"""From conditions, one a seed and fold, to the rows of the published table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from subvene.runner.experiments.results import Condition, Metric, Point

_ONLY_WHERE_ASKED = {"true_second": "True (2nd judge)", "info_second": "Info (2nd judge)"}


class _Titles(dict[str, str]):
    """What tables call metrics; one that is not listed, such as a trait's score, by its name."""

    def __missing__(self, metric: str) -> str:
        return _ONLY_WHERE_ASKED.get(metric, metric.replace("_", " "))


METRICS: dict[str, str] = _Titles(
    {
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
)
"""What is measured, in the order of the table, and what the table calls it; others stand behind these."""
LOWER_IS_BETTER = ("ce", "kl", "over_refusal")
"""From 0; of all others more is better, but of those that `is_lower_better` knows by how they end."""
_NOT_SHOWN = ("empty",)
"""What stands in the table of cells alone."""


def is_lower_better(metric: str) -> bool:
    """Whether less of a metric is better: of costs, and of the likelihood of answers without a trait."""
    return metric in LOWER_IS_BETTER or metric.endswith("_opposed_logp")


def in_order(metrics: Iterable[str]) -> list[str]:
    """Metrics in the table's order: the listed ones, then others as they come."""
    given = [name for name in dict.fromkeys(metrics) if name not in _NOT_SHOWN]
    return [name for name in METRICS if name in given] + [name for name in given if name not in METRICS]


@dataclass(frozen=True)
class Row:
    """A condition at one point, over its seeds and folds.

    Attributes:
        condition: its name in the file.
        label: what the table calls it.
        point: the values of its sweep.
        metrics: by name; `n` is the number of cells, `sd` their deviation (None for one cell).
        missing: how many verdicts the judge still owes.
        not_finite: why there are no metrics; None where there are.
        out_of_reach: why there are none since a budget is not met; None where there are.
    """

    condition: str
    label: str
    point: Point
    metrics: dict[str, Metric] = field(default_factory=dict)
    missing: int = 0
    not_finite: str | None = None
    out_of_reach: str | None = None

    @property
    def without_numbers(self) -> str | None:
        """What stands in the place of its numbers; None where there are some."""
        if self.not_finite is not None:
            return "not finite"
        return None if self.out_of_reach is None else "budget not met"

    @property
    def n(self) -> int:
        """The number of cells; of metrics that are not in all of them, the largest."""
        return max((metric.n for metric in self.metrics.values()), default=0)


def rows(conditions: Iterable[Condition]) -> list[Row]:
    """Mean and standard deviation over seeds and folds, a row for each label as it first comes.

    The mean weighs a fold by its questions (of what a judge says, by its verdicts), so that with one seed it
    is the mean over all questions; the deviation is that of the cells, with n − 1 below the root. True×Info
    is the product of the two means of the row, which is what its interval is about, too.
    """
    table = []
    for label, cells in by_label(conditions).items():
        # A mean over the seeds and folds that stayed finite would be a mean over other questions.
        broken = next((cell.not_finite for cell in cells if cell.not_finite), None)
        missed = next((cell.out_of_reach for cell in cells if cell.out_of_reach), None)
        whole = cells if broken is None and missed is None else ()
        metrics = {}
        for name in in_order(name for cell in whole for name in cell.metrics):
            measured = [cell for cell in cells if name in cell.metrics]
            weights = [_weight(cell, name) for cell in measured]
            metrics[name] = _over_cells([cell.metrics[name].mean for cell in measured], weights)
        if {"true", "info", "true_info"} <= metrics.keys():
            product = metrics["true"].mean * metrics["info"].mean
            metrics["true_info"] = metrics["true_info"].model_copy(update={"mean": product})
        first, missing = cells[0], sum(cell.missing for cell in cells)
        table.append(Row(first.name, label, first.point, metrics, missing, broken, missed))
    return table


def by_label(conditions: Iterable[Condition]) -> dict[str, list[Condition]]:
    """The cells of each label, in the order in which the labels first come."""
    groups: dict[str, list[Condition]] = {}
    for condition in conditions:
        groups.setdefault(condition.label, []).append(condition)
    return groups


def metrics_used(table: Iterable[Row]) -> list[str]:
    """The metrics that any row has, in the table's order."""
    return in_order(name for row in table for name in row.metrics)


def in_words(metric: Metric | None, digits: int = 3) -> str:
    """`0.412 ± 0.013`, or a dash where nothing was measured."""
    if metric is None:
        return "–"
    mean = f"{metric.mean:.{digits}f}"
    return mean if metric.sd is None else f"{mean} ± {metric.sd:.{digits}f}"


def _weight(cell: Condition, metric: str) -> int:
    judged = metric in ("true", "info", "true_and_info")
    questions = cell.counts.get("questions", 0)
    return max((judged and cell.metrics[metric].n) or questions, 1)


def _over_cells(values: Sequence[float], weights: Sequence[int]) -> Metric:
    mean = sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
    return Metric(mean=mean, sd=statistics.stdev(values) if len(values) > 1 else None, n=len(values))
