"""Differences of conditions and correlations within them, against scipy by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from subvene.runner.experiments.persona.differences import differences_of
from subvene.runner.experiments.results import Condition, Item
from subvene.runner.files.statistics import correlation_within


def condition(trait: str, label: str, scores: list[float | None]) -> Condition:
    """Two responses to each question."""
    items = tuple(Item(key=f"q{i // 2}", scores={"score": score}) for i, score in enumerate(scores))
    return Condition(name=label, label=label, group=trait, items=items)


def test_differences_are_paired_by_question_and_corrected_over_the_table() -> None:
    rng = np.random.default_rng(4)
    base = rng.normal(50, 10, size=24)
    edited = base + rng.normal(4, 6, size=24)
    other = base + rng.normal(0, 6, size=24)
    found = differences_of(
        [
            condition("a", "baseline", base.tolist()),
            condition("a", "steered", edited.tolist()),
            condition("b", "baseline", base.tolist()),
            condition("b", "steered", [None, None, *other[2:].tolist()]),
        ]
    )
    means = [x.reshape(-1, 2).mean(1) for x in (base, edited, other)]
    expected = [stats.ttest_rel(means[1], means[0]), stats.ttest_rel(means[2][1:], means[0][1:])]
    assert [(g.trait, g.condition, g.against, g.n) for g in found] == [
        ("a", "steered", "baseline", 12),
        ("b", "steered", "baseline", 11),
    ]
    assert [g.p for g in found] == pytest.approx([e.pvalue for e in expected])
    assert found[0].value == pytest.approx((means[1] - means[0]).mean())
    assert (found[0].low, found[0].high) == pytest.approx(tuple(expected[0].confidence_interval()))
    smaller, larger = sorted(found, key=lambda g: g.p or 0)
    assert smaller.p_holm == pytest.approx(2 * (smaller.p or 0))
    assert larger.p_holm == pytest.approx(max(larger.p or 0, smaller.p_holm or 0))


def test_what_has_no_pair_or_no_spread_is_not_tested() -> None:
    base = condition("a", "baseline", [1.0, 2.0, 3.0, 4.0])
    assert differences_of([base, condition("a", "steered", [2.0, 2.0])]) == []
    (same,) = differences_of([base, condition("a", "steered", [1.0, 2.0, 3.0, 4.0])])
    assert (same.value, same.p, same.p_holm) == (0, None, None)


def test_a_correlation_within_conditions_does_not_see_what_is_between_them() -> None:
    rng = np.random.default_rng(2)
    groups = [[(shift + x, 10 * shift + y) for x, y in rng.normal(size=(40, 2))] for shift in (0.0, 5.0)]
    centred = np.concatenate([np.array(group) - np.mean(group, axis=0) for group in groups])
    found = correlation_within(groups)
    assert found["pearson"] == pytest.approx(stats.pearsonr(*centred.T).statistic)
    assert abs(found["pearson"] or 0) < 0.25
    pooled = np.concatenate(groups)
    assert stats.pearsonr(*pooled.T).statistic > 0.85
    assert correlation_within([[], [(1.0, 2.0)]])["n"] == 1
