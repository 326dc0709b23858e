"""The shared statistics, against torch's, scipy's and definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from subvene.runner.files.statistics import bootstrap_p, correlation, holm, mean_and_sd, percentile_interval


def test_mean_and_standard_deviation() -> None:
    assert mean_and_sd([1.0, None, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_sd([None]) == (None, None)
    assert mean_and_sd([4.0]) == (4.0, None)


def test_correlation() -> None:
    found = correlation([1.0, 2.0, 3.0], [2.0, 3.0, 10.0])
    assert found["n"] == 3
    assert found["spearman"] == pytest.approx(1.0)
    expected = torch.corrcoef(torch.tensor([[1.0, 2, 3], [2, 3, 10]]))[0, 1].item()
    assert found["pearson"] == pytest.approx(expected)
    assert correlation([1.0, 2.0], [1.0, 2.0]) == {"pearson": None, "spearman": None, "n": 2}
    assert correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])["pearson"] is None


def test_holm_is_the_closed_test_of_bonferroni() -> None:
    """Rejecting a hypothesis where every set of hypotheses that holds it is rejected, by definition."""
    p = [0.01, 0.04, 0.03, 0.2, 0.03]
    sets = [c for n in range(1, 6) for c in itertools.combinations(range(5), n)]
    closed = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(5)]
    assert holm(p) == pytest.approx(closed)
    assert holm([]) == []


def test_a_bootstrap_p_is_the_level_at_which_the_interval_leaves_zero_out() -> None:
    values = np.random.default_rng(3).normal(1, 0.5, size=4999)
    p = bootstrap_p(values)
    assert p == pytest.approx(2 * stats.norm.sf(2), abs=0.012)
    for level, leaves_out in ((1 - 1.1 * p, True), (1 - 0.9 * p, False)):
        low, _ = percentile_interval(values, level)
        assert (low > 0) == leaves_out
    assert bootstrap_p(np.zeros(99)) == 1
    assert bootstrap_p(np.array([1.0, np.nan])) is None
