"""Intervals of a table: what chance in the choice of questions, texts and pairs may do to its numbers.

The percentile bootstrap (Efron and Tibshirani 1993, chapter 13) over items: questions are drawn with
replacement, the same ones for all conditions, so that the difference of two conditions is a paired one.
Several answers to one question, of several seeds or rollouts, are drawn together: a question is what there
could have been others of. Seeds and folds themselves are not drawn; their deviation stands in the table.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from subvene.runner.experiments.results import Condition, Item, Record, Results
from subvene.runner.experiments.rows import by_label
from subvene.runner.files.statistics import percentile_interval

INTERVALS = "intervals"
SAMPLES, LEVEL, SEED = 5000, 0.95, 0
_Array = NDArray[np.float64]


class Interval(Record):
    """The bounds of a number.

    Attributes:
        low: lower bound.
        high: upper bound.
        items: over how many items.
    """

    low: float
    high: float
    items: int


class Difference(Interval):
    """How far a condition is from the first one, on the items that both were measured on.

    Attributes:
        value: the mean difference.
    """

    value: float


class Intervals(Record):
    """The intervals of a comparison.

    Attributes:
        level: of all of them.
        samples: bootstrap samples.
        against: the label of the condition that differences are from; None without conditions.
        rows: label → metric → interval.
        differences: label → metric → difference.
    """

    level: float = LEVEL
    samples: int = SAMPLES
    against: str | None = None
    rows: dict[str, dict[str, Interval]] = Field(default={})
    differences: dict[str, dict[str, Difference]] = Field(default={})


class _Sample:
    """One condition's items of one metric: by item Σ weight·value and Σ weight over seeds, folds and answers.

    Args:
        cells: of the condition.
        metric: of which; the product of two means has the sums of both.

    Attributes:
        keys: the items that have something of it, sorted; none where one of the two has nothing.
    """

    def __init__(self, cells: Iterable[Condition], metric: str) -> None:
        parts = ("true", "info") if metric == "true_info" else (metric,)
        self._parts: list[dict[str, tuple[float, float]]] = [{} for _ in parts]
        for item in (item for cell in cells for item in cell.items):
            for part, sums in zip(parts, self._parts, strict=True):
                if (value := _score(item, part)) is not None:
                    weight = _weight(part, item.tokens)
                    total, weights = sums.get(item.key, (0.0, 0.0))
                    sums[item.key] = (total + weight * float(value), weights + weight)
        self.keys = sorted(set().union(*self._parts)) if all(self._parts) else []

    def values(self, keys: Sequence[str], counts: _Array) -> _Array:
        """The metric in every sample, [samples]; not a number where a sample has nothing of it.

        Args:
            keys: the items that are drawn from.
            counts: how often each is in every sample, [samples, items].
        """
        whole = np.ones(len(counts))
        with np.errstate(invalid="ignore", divide="ignore"):
            for sums in self._parts:
                pairs = np.array([sums.get(key, (0.0, 0.0)) for key in keys], dtype=np.float64)
                whole = whole * (counts @ pairs[:, 0]) / (counts @ pairs[:, 1])
        return whole


def _score(item: Item, metric: str) -> float | bool | None:
    """What an item has of a metric; an answer is true and informative if it is known to be both."""
    if metric != "true_and_info":
        return item.scores.get(metric)
    true, info = item.scores.get("true"), item.scores.get("info")
    return None if true is None or info is None else bool(true and info)


def _weight(metric: str, tokens: int | None) -> float:
    """CE and KL are means over tokens, of which the first of a text is predicted by nothing."""
    if tokens is None or metric not in ("ce", "kl"):
        return 1.0
    return float(tokens - (metric == "ce"))


def intervals_of(cells: Sequence[Condition]) -> Intervals:
    """The intervals of every row and metric that has items, and of its difference from the first row.

    Args:
        cells: the conditions of a comparison, one a seed and fold.
    """
    grouped = by_label(cells)
    samples = {
        label: {metric: _Sample(own, metric) for cell in own for metric in cell.metrics}
        for label, own in grouped.items()
        if not any(cell.not_finite for cell in own)
    }
    against = next(iter(grouped), None)
    first = {} if against is None else samples.get(against, {})
    drawn = functools.cache(_drawn)
    rows: dict[str, dict[str, Interval]] = {}
    differences: dict[str, dict[str, Difference]] = {}
    for label, by_metric in samples.items():
        for metric, sample in by_metric.items():
            if (found := _interval(sample, drawn)) is not None:
                rows.setdefault(label, {})[metric] = found
            base = first.get(metric) if label != against else None
            if base is not None and (gap := _difference(base, sample, drawn)) is not None:
                differences.setdefault(label, {})[metric] = gap
    return Intervals(against=against, rows=rows, differences=differences)


def intervals_in(results: Results) -> Intervals:
    """Those that results hold; none where they hold none, as of an earlier version."""
    return results.section(INTERVALS, Intervals) or Intervals()


def _drawn(n: int) -> _Array:
    """How often each of n items is in every sample, [samples, n]."""
    rng = np.random.default_rng([SEED, n])
    return rng.multinomial(n, np.full(n, 1 / n), size=SAMPLES).astype(np.float64)


def _interval(sample: _Sample, drawn: Callable[[int], _Array]) -> Interval | None:
    n = len(sample.keys)
    bounds = None if n < 2 else percentile_interval(sample.values(sample.keys, drawn(n)), LEVEL)
    return None if bounds is None else Interval(low=bounds[0], high=bounds[1], items=n)


def _difference(first: _Sample, other: _Sample, drawn: Callable[[int], _Array]) -> Difference | None:
    keys = sorted(set(first.keys) & set(other.keys))
    n = len(keys)
    if n < 2:
        return None
    gaps = other.values(keys, drawn(n)) - first.values(keys, drawn(n))
    if (bounds := percentile_interval(gaps, LEVEL)) is None:
        return None
    every = np.ones((1, n))
    value = float((other.values(keys, every) - first.values(keys, every))[0])
    return Difference(value=value, low=bounds[0], high=bounds[1], items=n)
