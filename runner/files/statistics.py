"""The few statistics that several results share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypedDict


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
