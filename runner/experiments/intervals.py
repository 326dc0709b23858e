"""Intervals of a table: what chance in the choice of questions, texts and pairs may do to its numbers.

The percentile bootstrap (Efron and Tibshirani 1993, chapter 13) over items: questions are drawn with
replacement, the same ones for all conditions, so that the difference of two conditions is a paired one.
Several answers to one question, of several rollouts, are drawn together: a question is what there could have
been others of. Where questions were tested with several fits, these are drawn too, crossed with the
questions: repeats of the folds, and in each the seeds that share them (the pigeonhole bootstrap of Owen 2007,
which is on the safe side; of few seeds it sees too little of their own spread). Folds are not drawn: they
have no question in common.

p says how far a difference is from 0 by the same samples, with Holm's correction over the rows of a metric.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from subvene.runner.experiments.results import Condition, Item, Record, Results
from subvene.runner.experiments.rows import by_label
from subvene.runner.files.statistics import bootstrap_p, holm, percentile_interval

INTERVALS = "intervals"
SAMPLES, LEVEL, SEED = 5000, 0.95, 0
_Array = NDArray[np.float64]
_Fit = tuple[int, int]


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
        p: two-sided, that it is 0; None in results of an earlier version.
        p_holm: corrected for the other rows that have the metric.
    """

    value: float
    p: float | None = None
    p_holm: float | None = None


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
    """One condition's items of one metric: by item and fit Σ weight·value and Σ weight over its answers.

    Args:
        cells: of the condition.
        metric: of which; the product of two means has the sums of both.
        folds: of a repeat.

    Attributes:
        keys: the items that have something of it, sorted; none where one of the two has nothing.
        fits: (repeat, seed) of the fits that they were measured with, sorted.
    """

    def __init__(self, cells: Iterable[Condition], metric: str, folds: int) -> None:
        parts = ("true", "info") if metric == "true_info" else (metric,)
        self._parts: list[dict[tuple[str, _Fit], tuple[float, float]]] = [{} for _ in parts]
        for cell in cells:
            fit = ((cell.fold or 0) // folds, cell.seed or 0)
            for item in cell.items:
                for part, sums in zip(parts, self._parts, strict=True):
                    if (value := _score(item, part)) is not None:
                        weight = _weight(part, item.tokens)
                        total, weights = sums.get((item.key, fit), (0.0, 0.0))
                        sums[item.key, fit] = (total + weight * float(value), weights + weight)
        places = [*itertools.chain.from_iterable(self._parts)] if all(self._parts) else []
        self.keys = sorted({key for key, _ in places})
        self.fits = sorted({fit for _, fit in places})

    def values(self, keys: Sequence[str], counts: _Array, fits: _Array) -> _Array:
        """The metric in every sample, [samples]; not a number where a sample has nothing of it.

        Args:
            keys: the items that are drawn from.
            counts: how often each is in every sample, [samples, items].
            fits: how much each fit counts in every sample, [samples, fits].
        """
        whole = np.ones(len(counts))
        with np.errstate(invalid="ignore", divide="ignore"):
            for sums in self._parts:
                pairs = np.array([[sums.get((key, fit), (0.0, 0.0)) for fit in self.fits] for key in keys])
                total, weights = (((counts @ pairs[..., i]) * fits).sum(1) for i in (0, 1))
                whole = whole * total / weights
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


def intervals_of(cells: Sequence[Condition], folds: int = 1) -> Intervals:
    """The intervals of every row and metric that has items, and of its difference from the first row.

    Args:
        cells: the conditions of a comparison, one a seed and fold.
        folds: of a repeat; folds are numbered on from one repeat to the next.
    """
    grouped = by_label(cells)
    samples = {
        label: {metric: _Sample(own, metric, folds) for cell in own for metric in cell.metrics}
        for label, own in grouped.items()
        if not any(cell.not_finite or cell.out_of_reach for cell in own)
    }
    against = next(iter(grouped), None)
    first = {} if against is None else samples.get(against, {})
    rows: dict[str, dict[str, Interval]] = {}
    gaps: dict[str, dict[str, Difference]] = defaultdict(dict)
    for label, by_metric in samples.items():
        for metric, sample in by_metric.items():
            if (found := _interval(sample)) is not None:
                rows.setdefault(label, {})[metric] = found
            base = first.get(metric) if label != against else None
            if base is not None and (gap := _difference(base, sample)) is not None:
                gaps[metric][label] = gap
    differences: dict[str, dict[str, Difference]] = {label: {} for label in samples}
    for metric, by_row in gaps.items():
        for label, gap in _corrected(by_row).items():
            differences[label][metric] = gap
    known = {label: by_metric for label, by_metric in differences.items() if by_metric}
    return Intervals(against=against, rows=rows, differences=known)


def intervals_in(results: Results) -> Intervals:
    """Those that results hold; none where they hold none, as of an earlier version."""
    return results.section(INTERVALS, Intervals) or Intervals()


def _corrected(gaps: Mapping[str, Difference]) -> dict[str, Difference]:
    """The differences of one metric, by row, with p-values corrected for how many rows there are."""
    p = holm([1.0 if gap.p is None else gap.p for gap in gaps.values()])
    return {
        label: gap.model_copy(update={"p_holm": corrected})
        for (label, gap), corrected in zip(gaps.items(), p, strict=True)
    }


@functools.cache
def _items(n: int) -> _Array:
    """How often each of n items is in every sample, [samples, n]."""
    rng = np.random.default_rng([SEED, n])
    return rng.multinomial(n, np.full(n, 1 / n), size=SAMPLES).astype(np.float64)


def _fits(fits: Sequence[_Fit]) -> _Array:
    """How much each fit counts in every sample, [samples, fits]: repeats are drawn, and in each its seeds."""
    sizes = [len([*group]) for _, group in itertools.groupby(fits, key=lambda fit: fit[0])]
    return _nested(tuple(sizes))


@functools.cache
def _nested(sizes: tuple[int, ...]) -> _Array:
    rng = np.random.default_rng([SEED, len(sizes), *sizes])
    repeats = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=SAMPLES)
    seeds = [rng.multinomial(size, np.full(size, 1 / size), size=SAMPLES) / size for size in sizes]
    return np.concatenate([repeats[:, [i]] * within for i, within in enumerate(seeds)], axis=1)


def _interval(sample: _Sample) -> Interval | None:
    n = len(sample.keys)
    if n < 2:
        return None
    bounds = percentile_interval(sample.values(sample.keys, _items(n), _fits(sample.fits)), LEVEL)
    return None if bounds is None else Interval(low=bounds[0], high=bounds[1], items=n)


def _difference(first: _Sample, other: _Sample) -> Difference | None:
    keys = sorted(set(first.keys) & set(other.keys))
    n = len(keys)
    if n < 2:
        return None
    drawn = _items(n)
    gaps = other.values(keys, drawn, _fits(other.fits)) - first.values(keys, drawn, _fits(first.fits))
    bounds, p = percentile_interval(gaps, LEVEL), bootstrap_p(gaps)
    if bounds is None:
        return None
    every = np.ones((1, n))
    value = float((_whole(other, keys, every) - _whole(first, keys, every))[0])
    return Difference(value=value, low=bounds[0], high=bounds[1], items=n, p=p)


def _whole(sample: _Sample, keys: Sequence[str], every: _Array) -> _Array:
    return sample.values(keys, every, np.ones((1, len(sample.fits))))
