"""The few statistics that several results share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def mean_and_sd(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n − 1) of the values that there are; None where they are too few."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    mean = sum(known) / len(known)
    if len(known) == 1:
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in known) / (len(known) - 1))


class Correlations(TypedDict):
    """Pearson's and Spearman's coefficients of n points; None where they mean nothing."""

    pearson: float | None
    spearman: float | None
    n: int


def correlation(values: Sequence[float], scores: Sequence[float]) -> Correlations:
    """Pearson's and Spearman's coefficients and n; None where fewer than three points, or a constant side."""
    from scipy import stats

    n = len(values)
    if n < 3 or len(set(values)) == 1 or len(set(scores)) == 1:
        return {"pearson": None, "spearman": None, "n": n}
    return {
        "pearson": float(stats.pearsonr(values, scores).statistic),
        "spearman": float(stats.spearmanr(values, scores).statistic),
        "n": n,
    }


@dataclass(frozen=True)
class Tested:
    """A mean difference with its 95 % interval and p; p None where all differences are the same."""

    value: float
    low: float
    high: float
    p: float | None


def share_interval(count: int, n: int, level: float) -> tuple[float, float]:
    """Wilson's interval of a share, count of n."""
    from scipy.stats import binomtest

    bounds = binomtest(count, n).proportion_ci(level, method="wilson")
    return float(bounds.low), float(bounds.high)


def paired_t(values: Sequence[float], others: Sequence[float]) -> Tested | None:
    """The paired t-test of values against others, two-sided; None with fewer than two pairs."""
    from scipy import stats

    gaps = [a - b for a, b in zip(values, others, strict=True)]
    if len(gaps) < 2:
        return None
    mean = sum(gaps) / len(gaps)
    if len(set(gaps)) == 1:
        return Tested(mean, mean, mean, None)
    found = stats.ttest_rel(values, others)
    low, high = found.confidence_interval()
    return Tested(mean, float(low), float(high), float(found.pvalue))


def correlation_within(groups: Iterable[Sequence[tuple[float, float]]]) -> Correlations:
    """As `correlation`, of how far values and scores are from the means of their own group."""
    values: list[float] = []
    scores: list[float] = []
    for group in groups:
        for side, given in zip((values, scores), zip(*group, strict=True), strict=False):
            side += [value - sum(given) / len(given) for value in given]
    return correlation(values, scores)


def holm(p: Sequence[float]) -> list[float]:
    """p-values of one family corrected for how many there are (Holm 1979), in their order, at most 1."""
    order = sorted(range(len(p)), key=p.__getitem__)
    corrected, largest = [1.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def bootstrap_p(values: NDArray[np.float64]) -> float | None:
    """Two-sided p that a number is 0, from its bootstrap values, [samples]; None where a sample had no value.

    Twice the share of samples on the rarer side of 0 (Efron and Tibshirani 1993, section 15.4): the largest
    level at which the percentile interval leaves 0 out, one sample added to each side so that it is never 0.
    """
    import numpy as np

    if not np.isfinite(values).all():
        return None
    rarer = min(int((values <= 0).sum()), int((values >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(values) + 1))


def percentile_interval(values: NDArray[np.float64], level: float) -> tuple[float, float] | None:
    """The percentile interval of bootstrap values, [samples]; None where a sample had no value.

    Args:
        values: of a number in every sample.
        level: of the interval, such as 0.95.
    """
    import numpy as np

    if not np.isfinite(values).all():
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
