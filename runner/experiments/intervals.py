"""Intervals of a table: what chance in the choice of questions, texts and pairs may do to its numbers.

The percentile bootstrap (Efron and Tibshirani 1993, chapter 13) over items: questions are drawn with
replacement, the same ones for all conditions, so that the difference of two conditions is a paired one.
Several answers to one question, of several seeds or rollouts, are drawn together: a question is what there
could have been others of. Seeds and folds themselves are not drawn; their deviation stands in the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from subvene.runner.experiments.results import Condition, Item, Record, Results

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


class Difference(Record):
    """How far a condition is from the first one, on the items that both were measured on.

    Attributes:
        value: the mean difference.
        low: lower bound.
        high: upper bound.
        items: over how many items.
    """

    value: float
    low: float
    high: float
    items: int


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


class _Sums:
    """Of one condition and metric: by item Σ weight·value and Σ weight over seeds, folds and answers."""

    def __init__(self, cells: Iterable[Condition], metric: str) -> None:
        self.by_key: dict[str, tuple[float, float]] = {}
        for cell in cells:
            for item in cell.items:
                value = _score(item, metric)
                if value is None:
                    continue
                weight = _weight(metric, item.tokens)
                total, weights = self.by_key.get(item.key, (0.0, 0.0))
                self.by_key[item.key] = (total + weight * float(value), weights + weight)

    def column(self, keys: Sequence[str]) -> tuple[_Array, _Array]:
        """Sums and weights of some items, 0 where there is nothing."""
        pairs = np.array([self.by_key.get(key, (0.0, 0.0)) for key in keys], dtype=np.float64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]


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
    by_label: dict[str, list[Condition]] = {}
    for cell in cells:
        by_label.setdefault(cell.label, []).append(cell)
    finite = {label: own for label, own in by_label.items() if not any(one.not_finite for one in own)}
    against = next(iter(by_label), None)
    rows: dict[str, dict[str, Interval]] = {}
    differences: dict[str, dict[str, Difference]] = {}
    for label, own in finite.items():
        names = list(dict.fromkeys(name for cell in own for name in cell.metrics))
        for name in names:
            if (found := _interval(own, name)) is not None:
                rows.setdefault(label, {})[name] = found
            first = finite.get(against) if against is not None and label != against else None
            if first is not None and (gap := _difference(first, own, name)) is not None:
                differences.setdefault(label, {})[name] = gap
    return Intervals(against=against, rows=rows, differences=differences)


def intervals_in(results: Results) -> Intervals:
    """Those that results hold; none where they hold none, as of an earlier version."""
    return results.section(INTERVALS, Intervals) or Intervals()


def _parts(metric: str) -> tuple[str, ...]:
    """The scores of items that a metric is made of: the product of their means."""
    return ("true", "info") if metric == "true_info" else (metric,)


def _values(cells: Sequence[Condition], metric: str, keys: Sequence[str], counts: _Array) -> _Array:
    """The metric in every sample, [samples]; not a number where a sample has nothing of it."""
    whole = np.ones(len(counts))
    with np.errstate(invalid="ignore", divide="ignore"):
        for part in _parts(metric):
            sums, weights = _Sums(cells, part).column(keys)
            whole = whole * (counts @ sums) / (counts @ weights)
    return whole


def _keys(cells: Sequence[Condition], metric: str) -> list[str]:
    parts = [_Sums(cells, part).by_key for part in _parts(metric)]
    return sorted(set().union(*parts)) if all(parts) else []


def _drawn(n: int) -> _Array:
    """How often each of n items is in every sample, [samples, n]."""
    rng = np.random.default_rng([SEED, n])
    return rng.multinomial(n, np.full(n, 1 / n), size=SAMPLES).astype(np.float64)


def _bounds(values: _Array) -> tuple[float, float] | None:
    if not np.isfinite(values).all():
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _interval(cells: Sequence[Condition], metric: str) -> Interval | None:
    keys = _keys(cells, metric)
    if len(keys) < 2:
        return None
    bounds = _bounds(_values(cells, metric, keys, _drawn(len(keys))))
    return None if bounds is None else Interval(low=bounds[0], high=bounds[1], items=len(keys))


def _difference(first: Sequence[Condition], other: Sequence[Condition], metric: str) -> Difference | None:
    keys = sorted(set(_keys(first, metric)) & set(_keys(other, metric)))
    if len(keys) < 2:
        return None
    counts = _drawn(len(keys))
    bounds = _bounds(_values(other, metric, keys, counts) - _values(first, metric, keys, counts))
    every = np.ones((1, len(keys)))
    value = float((_values(other, metric, keys, every) - _values(first, metric, keys, every))[0])
    if bounds is None:
        return None
    return Difference(value=value, low=bounds[0], high=bounds[1], items=len(keys))


def bounds_by_row(results: Results) -> Mapping[str, Mapping[str, Interval]]:
    """Label → metric → interval."""
    return intervals_in(results).rows
