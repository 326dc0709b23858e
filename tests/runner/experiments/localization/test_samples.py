"""What resampling gives, against the same by hand."""

from __future__ import annotations

import numpy as np
import pytest

from subvene.runner.experiments.comparison.measures import Measured
from subvene.runner.experiments.comparison.measures.base import Marks
from subvene.runner.experiments.localization.samples import Resamples, Sample
from subvene.runner.files.statistics import percentile_interval


def measured() -> list[Measured]:
    by_question = {
        "a": {"mc1": 1.0, "mc2": 0.9, "true": 1.0, "info": 1.0},
        "b": {"mc1": 0.0, "mc2": 0.2, "true": 0.0, "info": 1.0},
        "c": {"mc1": 1.0, "mc2": 0.4, "true": None, "info": 0.0},
    }
    texts = {"ce": [2.0, 4.0], "kl": [0.1, 0.4], "tokens": [11, 31]}
    marks = {key: Marks(scores=scores) for key, scores in by_question.items()}
    return [Measured(questions=marks), Measured(texts=texts)]


def test_values_on_all_questions_are_the_metrics() -> None:
    sample = Sample.of(measured(), ["a", "b", "c"])
    names = ["mc1", "mc2", "true", "info", "true_info", "true_and_info", "ce", "kl"]
    assert sample.metrics() == names
    assert float(sample.value("mc1")) == pytest.approx(2 / 3)
    assert float(sample.value("true")) == 0.5  # of the two with a verdict
    assert float(sample.value("true_info")) == pytest.approx(0.5 * 2 / 3)
    assert float(sample.value("true_and_info")) == 0.5
    # The first of n tokens is not predicted; what has a next token is not one fewer for KL.
    assert float(sample.value("ce")) == pytest.approx((10 * 2 + 30 * 4) / 40)
    assert float(sample.value("kl")) == pytest.approx((11 * 0.1 + 31 * 0.4) / 42)


def test_values_on_resampled_questions_are_those_of_the_questions_drawn() -> None:
    sample = Sample.of(measured(), ["a", "b", "c"])
    index = np.array([[0, 0, 1], [2, 1, 1]])
    np.testing.assert_allclose(sample.value("mc2", index), [2.0 / 3, 0.8 / 3])
    np.testing.assert_allclose(sample.value("true", index), [2 / 3, 0.0])
    np.testing.assert_allclose(sample.value("kl", np.array([[1, 1]])), [0.4])


def test_intervals_cover_as_often_as_they_say() -> None:
    rng, inside = np.random.default_rng(0), 0
    for trial in range(200):
        values = (rng.random(80) < 0.3).astype(float)
        sample = Sample({"mc1": values}, {})
        bounds = percentile_interval(Resamples.drawn(400, 80, 0, trial).of(sample, "mc1"), 0.9)
        inside += bounds is not None and bounds[0] <= 0.3 <= bounds[1]
    assert 0.82 <= inside / 200 <= 0.96


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    one, same, other = (Resamples.drawn(5, 20, 4, seed) for seed in (1, 1, 2))
    assert (one.questions == same.questions).all()
    assert (one.questions != other.questions).any()


def test_no_interval_where_a_sample_has_no_value() -> None:
    sample = Sample({"true": np.array([1.0, np.nan])}, {})
    bootstrap = sample.value("true", np.array([[0, 0], [1, 1]]))
    assert percentile_interval(bootstrap, 0.95) is None
