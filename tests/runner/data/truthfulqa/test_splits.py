"""Splits: a question's place depends on its own text alone."""

from __future__ import annotations

import dataclasses

import pytest

from subvene.runner.data.truthfulqa.questions import Question
from subvene.runner.data.truthfulqa.splits import fold_of, limited, validation_keys

QUESTIONS = [Question(f"Is {i} a number?", "Yes.", ("Yes.",), ("No.",), "Numbers") for i in range(400)]
FIRST_FOLDS = [1, 0, 1, 1, 1, 1, 0, 1]


def test_folds_are_those_of_the_text_alone() -> None:
    reworded = dataclasses.replace(QUESTIONS[3], best="Indeed.", question=" Is 3  a number? ")
    for folds in (1, 2, 5):
        assert fold_of(reworded, folds) == fold_of(QUESTIONS[3], folds)
        found = [fold_of(question, folds) for question in QUESTIONS]
        assert set(found) == set(range(folds))
        assert all(abs(found.count(fold) - 400 / folds) < 45 for fold in range(folds))
    # Written down: a fold that moved between versions of subvene would mix tuning and test questions.
    assert [fold_of(question, 2) for question in QUESTIONS[:8]] == FIRST_FOLDS


def test_validation_questions_are_drawn_by_seed_and_text() -> None:
    drawn = validation_keys(QUESTIONS, 0.2, 1)
    assert len(drawn) == 80
    assert validation_keys(QUESTIONS[::-1], 0.2, 1) == drawn
    assert len(drawn & validation_keys(QUESTIONS, 0.2, 2)) < 40
    assert validation_keys(QUESTIONS, 0.1, 1) < drawn
    # Without one question nothing moves but what takes its place.
    gone = next(question for question in QUESTIONS if question.key in drawn)
    fewer = validation_keys([q for q in QUESTIONS if q is not gone], 0.2, 1)
    assert drawn - fewer == {gone.key}
    assert len(fewer) == 80


def test_validation_is_independent_of_folds() -> None:
    drawn = validation_keys(QUESTIONS, 0.5, 1)
    both = sum(fold_of(question, 2) for question in QUESTIONS if question.key in drawn)
    assert 75 < both < 125


def test_limited() -> None:
    ten = limited(QUESTIONS, 10)
    assert len(ten) == 10
    assert ten == [question for question in QUESTIONS if question in ten]
    assert {q.key for q in limited(QUESTIONS[::-1], 10)} == {q.key for q in ten}
    assert {q.key for q in ten} < {q.key for q in limited(QUESTIONS, 11)}
    assert limited(QUESTIONS, None) == limited(QUESTIONS, 1000) == QUESTIONS


def test_impossible_splits_are_errors() -> None:
    with pytest.raises(ValueError, match="folds"):
        fold_of(QUESTIONS[0], 0)
    with pytest.raises(ValueError, match="fraction"):
        validation_keys(QUESTIONS, 1.2, 1)
