"""Ranks, tests and intervals, against scipy's and against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from subvene.runner.experiments.localization import evidence
from subvene.runner.experiments.localization.evidence import among_draws
from subvene.runner.experiments.localization.samples import Resamples, Sample
from subvene.runner.experiments.localization.section import (
    ArmRecord,
    LocalizationSection,
    Rank,
    Selection,
    SingleHeads,
    Split,
)
from subvene.runner.experiments.localization.verdict import verdict
from subvene.runner.experiments.results import Condition, Metric


def test_the_rank_counts_draws_that_are_at_least_as_good() -> None:
    found = among_draws("edit", 0.5, [0.4, 0.5, 0.6, 0.3], "mc2", 0.95)
    assert found.rank == Rank(at_least=2, n=4, p=3 / 5)
    # Of KL less is better.
    assert among_draws("edit", 0.5, [0.4, 0.5, 0.6, 0.3], "kl", 0.95).rank.at_least == 3


def test_the_rank_of_one_more_draw_is_uniform() -> None:
    rng = np.random.default_rng(0)
    found = [among_draws("edit", x[0], list(x[1:]), "mc2", 0.95).rank.p for x in rng.normal(size=(2000, 10))]
    for p in (0.1, 0.3, 0.7):
        assert np.mean(np.array(found) <= p + 1e-9) == pytest.approx(p, abs=0.04)


def test_the_prediction_interval_holds_a_further_draw_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    drawn = [among_draws("edit", x[0], list(x[1:]), "mc2", 0.9).inside for x in rng.normal(size=(2000, 6))]
    assert np.mean(drawn) == pytest.approx(0.9, abs=0.025)


def test_the_t_test_is_scipys_and_finds_a_set_amidst_many_draws() -> None:
    draws = np.random.default_rng(2).normal(0.5, 0.02, 200)
    found = among_draws("edit", 0.51, list(draws), "mc2", 0.95)
    expected = stats.ttest_1samp(draws, 0.51)
    assert found.t_test is not None
    assert found.t_test.t == pytest.approx(expected.statistic)
    assert found.t_test.p == pytest.approx(expected.pvalue)
    assert found.t_test.p < 0.001
    assert found.rank.p > 0.2
    assert found.inside


def test_draws_that_do_not_differ_have_no_test() -> None:
    found = among_draws("edit", 0.5, [0.4, 0.4], "mc2", 0.95)
    assert found.t_test is None
    assert found.prediction is None
    assert found.inside is None


def arm(name: str, group: str, mc2: float) -> Condition:
    return Condition(name=name, label=name, group=group, metrics={"mc2": Metric(mean=mc2, n=4)})


def arms() -> list[Condition]:
    return [
        arm("baseline", "baseline", 0.4),
        arm("edit_probed", "edit_probed", 0.6),
        *(arm(f"edit_random_{i}", "edit_random", value) for i, value in enumerate((0.61, 0.5, 0.7), 1)),
        *(arm(f"edit_single_{i}", "edit_single", value) for i, value in enumerate((0.45, 0.65), 1)),
    ]


def test_evidence_and_single_heads() -> None:
    (found,) = evidence.evidence(arms(), 0.95)
    assert (found.family, found.metric, found.probed) == ("edit", "mc2", 0.6)
    assert found.random == (0.61, 0.5, 0.7)
    (single,) = evidence.singles(arms())
    assert single == SingleHeads(metric="mc2", values=(0.45, 0.65), best=0.65, reach=1, n=2)


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(3)
    base = rng.random(60)
    samples = {
        "baseline": Sample({"mc2": base}, {}),
        "edit_probed": Sample({"mc2": base + 0.1}, {}),
        "edit_random_1": Sample({"mc2": base + 0.3}, {}),
        "edit_random_2": Sample({"mc2": base + 0.1}, {}),
    }
    found = {
        (one.a, one.b): one for one in evidence.comparisons(samples, Resamples.drawn(500, 60, 0, 0), 0.95)
    }
    assert found.keys() == {("edit_probed", "baseline"), ("edit_probed", "edit_random")}
    over = found["edit_probed", "baseline"]
    # Every question gained the same, so resampling them changes nothing: unpaired, it would be ±0.1.
    assert over.difference == pytest.approx(0.1)
    assert over.interval == pytest.approx((0.1, 0.1))
    assert found["edit_probed", "edit_random"].difference == pytest.approx(-0.1)


def said(probed: float, draws: list[float]) -> str:
    conditions = [
        arm("baseline", "baseline", 0.4),
        arm("edit_probed", "edit_probed", probed),
        *(arm(f"edit_random_{i}", "edit_random", value) for i, value in enumerate(draws, 1)),
    ]
    section = LocalizationSection(
        arms={one.name: ArmRecord(family="edit", n_heads=3) for one in conditions},
        evidence=evidence.evidence(conditions, 0.95),
        selection=Selection(metric="mc2", questions=5),
        split=Split(train=6, validation=2, test=2, pairs=9, tuning=8),
    )
    return " ".join(verdict(conditions, section))


def test_the_verdict_says_what_the_draws_allow() -> None:
    few = said(0.9, [0.1, 0.2, 0.3])
    assert "0 of 3 random sets" in few
    assert "could not have called any set special" in few
    many = [0.4 + 0.001 * i for i in range(30)]
    assert "by this test the probed heads are special" in said(0.9, many)
    assert "by this test the probed heads are not special" in said(0.41, many)
    assert "at sets of 3 heads" in few
    assert "Not tested" in few
