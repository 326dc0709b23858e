"""Shares corrected for a judge's mistakes."""

from __future__ import annotations

import numpy as np
import pytest

from subvene.runner.judges.correction import CorrectionError, ErrorRates, corrected
from subvene.runner.judges.scales.yes_no import Judgement
from subvene.runner.judges.training.agreement import agreement

RATES = ErrorRates(sensitivity=0.8, specificity=0.84, n_yes=4000, n_no=6000)


def test_the_share_that_the_mistakes_made_is_turned_back() -> None:
    for share in (0.1, 0.4, 0.9):
        judged = share * RATES.sensitivity + (1 - share) * (1 - RATES.specificity)
        found = corrected(judged, 817, RATES)
        assert found.share == pytest.approx(share)
        assert found.low < share < found.high
    assert RATES.youden == pytest.approx(0.64)


def test_a_judge_without_mistakes_leaves_the_share_and_wilsons_interval() -> None:
    sure = ErrorRates(1.0, 1.0, 10**9, 10**9)
    found = corrected(0.3, 100, sure)
    assert found.share == pytest.approx(0.3)
    # Agresti and Coull, which Lang and Reiczigel start from: 0.3 of 100, 95 %.
    assert (found.low, found.high) == (pytest.approx(0.2186, abs=1e-3), pytest.approx(0.3962, abs=1e-3))


def test_the_interval_holds_the_true_share_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    n, n_yes, n_no, rounds = 200, 120, 150, 1500
    for share in (0.2, 0.7):
        held = 0
        for _ in range(rounds):
            rates = ErrorRates(
                draw.binomial(n_yes, 0.8) / n_yes, draw.binomial(n_no, 0.84) / n_no, n_yes, n_no
            )
            judged = draw.binomial(n, share * 0.8 + (1 - share) * 0.16) / n
            found = corrected(judged, n, rates)
            held += found.low <= share <= found.high
        assert 0.93 < held / rounds < 0.98


def test_rates_of_a_record_of_agreement() -> None:
    labels = [True] * 4 + [False] * 6
    said = [True, True, True, False, False, False, False, False, False, True]
    stated = agreement(labels, [Judgement(float(one), one) for one in said])
    rates = ErrorRates.of(stated.__dict__)
    assert rates == ErrorRates(0.75, 5 / 6, 4, 6)
    assert ErrorRates.of({"n": 3, "yes_rate": 1.0, "accuracy_on_yes": 1.0, "accuracy_on_no": None}) is None
    assert ErrorRates.of(None) is None


def test_a_judge_that_tells_nothing_corrects_nothing() -> None:
    with pytest.raises(CorrectionError, match=r"sensitivity 0\.500 and specificity 0\.500"):
        corrected(0.4, 100, ErrorRates(0.5, 0.5, 50, 50))
    with pytest.raises(CorrectionError, match="at least one answer"):
        corrected(0.4, 0, RATES)
