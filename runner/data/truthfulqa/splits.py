"""Folds, validation questions and subsets, each decided by a question's own text.

A question's fold depends on nothing but itself: removing, rewording or reordering other questions moves
nothing, and the questions that two versions of TruthfulQA share fall into the same folds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from subvene.runner.data.truthfulqa.questions import Question


def fold_of(question: Question, folds: int, repeat: int = 0) -> int:
    """The fold, 0 to `folds` - 1, in which a question is tested; drawn anew for every repeat."""
    if folds < 1:
        raise ValueError(f"folds: expected a positive number, found {folds}")
    return _draw(f"fold of repeat {repeat}" if repeat else "fold", question) % folds


def is_of_split(question: Question, split: int, folds: int) -> bool:
    """Whether a split tests a question; split i is fold i mod `folds` of repeat i // `folds`."""
    repeat, fold = divmod(split, folds)
    return folds == 1 or fold_of(question, folds, repeat) == fold


def ranking_folds(keys: Iterable[str], folds: int, seed: int) -> dict[str, int]:
    """The fold, 0 to `folds` - 1, of each key, as many in one as in another; a seed draws them."""
    drawn = sorted(set(keys), key=lambda key: _draw_of(f"ranking {seed}", key))
    return {key: i % folds for i, key in enumerate(drawn)}


def validation_keys(questions: Sequence[Question], fraction: float, seed: int) -> frozenset[str]:
    """Keys of the round(fraction · n) questions that a seed holds out of `questions` for validation."""
    return held_out((question.key for question in questions), fraction, f"validation {seed}")


def held_out(keys: Iterable[str], fraction: float, what: str) -> frozenset[str]:
    """The round(fraction · n) of n different keys that are held out for `what`, whatever their order."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction: expected a number from 0 to 1, found {fraction}")
    chosen = sorted(set(keys), key=lambda key: _draw_of(what, key))
    return frozenset(chosen[: round(fraction * len(chosen))])


def limited(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """At most `limit` of the questions, always the same ones, in the order given; all of them if None.

    A larger limit holds the questions of every smaller one.
    """
    if limit is None:
        return list(questions)
    chosen = {question.key for question in _smallest(questions, "limit", limit)}
    return [question for question in questions if question.key in chosen]


def _smallest(questions: Sequence[Question], what: str, count: int) -> list[Question]:
    return sorted(questions, key=lambda question: _draw(what, question))[:count]


def _draw(what: str, question: Question) -> int:
    return _draw_of(what, question.key)


def _draw_of(what: str, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{what} {key}".encode()).digest())
