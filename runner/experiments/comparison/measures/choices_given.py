"""What the unit of multiple choice gives: every question's scores, JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypedDict

from subvene.runner.edits.receipt import Receipt
from subvene.runner.experiments.comparison.measures.base import WithReceipts, plain
from subvene.runner.measures.truthfulqa_scores import ChoiceScores


class _Choices(TypedDict):
    mc1: float
    mc2: float
    mc3: float
    correct: list[float]
    incorrect: list[float]


class ChoicesGiven(WithReceipts):
    """Scores by question, tokens passed, and why no prompt was shared; None where they were."""

    scores: dict[str, _Choices]
    tokens: int
    from_scratch: str | None


def choices_given(found: ChoiceScores, names: Mapping[str, str] | None = None) -> ChoicesGiven:
    """What the unit gives; `names`: what the interventions of its receipts are to be called."""
    receipts = found.receipts
    if names is not None:
        named = (
            (replace(one, name=names[one.name]) for one in receipt.interventions) for receipt in receipts
        )
        receipts = tuple(Receipt(tuple(some)) for some in named)
    return {
        "scores": {
            score.key: {
                "mc1": score.mc1,
                "mc2": score.mc2,
                "mc3": score.mc3,
                "correct": list(score.correct),
                "incorrect": list(score.incorrect),
            }
            for score in found.questions
        },
        "receipts": plain(receipts),
        "tokens": found.tokens,
        "from_scratch": found.from_scratch,
    }
