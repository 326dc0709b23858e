"""A judge before labels that people gave: which rows count, and what they say."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from subvene.runner.data.truthfulqa.questions import question_key
from subvene.runner.files.json_value import Json
from subvene.runner.judges.base import Answer, Aspect, Judge, JudgeError
from subvene.runner.judges.scales.yes_no import ASPECTS, BOTH
from subvene.runner.judges.training.agreement import Agreement, agreement
from subvene.runner.judges.training.labels import Label
from subvene.runner.judges.training.wording import normalise

if TYPE_CHECKING:
    from subvene.runner.data.truthfulqa.questions import Question

_SEED = 0
_REASONS = 5


@dataclass(frozen=True)
class Checked:
    """What came out of a check.

    Attributes:
        aspect: the quality that the labels are about.
        agreement: over all rows that count.
        questions: how many different questions those rows are about.
        by_category: the same by TruthfulQA's categories; empty where no questions were given.
        held_out: whether the judge knows its training questions, so that only others were counted.
        fitted_on: rows that were left out because the judge was fitted on their question.
        without_references: rows whose question is not among those that bring reference answers.
        reasons: why rows have no verdict, the most frequent reasons with their counts.
        missing: how many of these the judge still owes, because it gave no usable reply.
    """

    aspect: Aspect
    agreement: Agreement
    questions: int
    by_category: dict[str, Agreement]
    held_out: bool
    fitted_on: int
    without_references: int
    reasons: dict[str, int]
    missing: int = 0

    def record(self) -> dict[str, Json]:
        """The same as JSON values."""
        return asdict(self)


def check_judge(
    judge: Judge,
    labels: Sequence[Label],
    aspect: Aspect,
    *,
    questions: Sequence[Question] = (),
    limit: int | None = None,
) -> Checked:
    """Measures a judge against labels.

    Args:
        judge: the judge; one that knows on which questions it was fitted is measured on the others only.
        labels: what people said.
        aspect: which quality the labels are about.
        questions: where reference answers and categories come from.
        limit: at most this many rows, drawn at random but always the same ones.

    Raises:
        JudgeError: the judge does not judge this quality, was fitted on every question, or gave no verdict.
    """
    if not judge.tells(ASPECTS[aspect]):
        able = ", ".join(one.name for one in BOTH if judge.tells(one))
        raise JudgeError(f"this judge says nothing about {aspect}, only about {able}")
    known = {row.question: judge.held_out(row.question) for row in labels}
    rows = [row for row in labels if known[row.question] is not False]
    if not rows:
        raise JudgeError("the judge was fitted on every question of this file, so the file cannot measure it")
    fitted_on = len(labels) - len(rows)
    if limit is not None and limit < len(rows):
        chosen = sorted(random.Random(_SEED).sample(range(len(rows)), limit))
        rows = [rows[i] for i in chosen]
    by_key = {question.key: question for question in questions}
    found = [by_key.get(question_key(row.question)) for row in rows]
    answers = [_asked(row, one) for row, one in zip(rows, found, strict=True)]
    judgements = judge.judge(answers, ASPECTS[aspect])
    reasons = Counter(one.reason or "no reason given" for one in judgements if one.verdict is None)
    truth = [row.label for row in rows]
    overall = agreement(truth, judgements)
    if overall.n == 0:
        raise JudgeError(f"the judge gave no verdict on any row: {reasons.most_common(1)[0][0]}")
    categories: dict[str, list[int]] = {}
    for i, one in enumerate(found):
        if one is not None:
            categories.setdefault(one.category, []).append(i)
    return Checked(
        aspect=aspect,
        agreement=overall,
        questions=len({row.question for row in rows}),
        by_category={
            name: agreement([truth[i] for i in places], [judgements[i] for i in places])
            for name, places in sorted(categories.items())
        },
        held_out=any(one is not None for one in known.values()),
        fitted_on=fitted_on,
        without_references=sum(one is None for one in found) if questions else len(rows),
        reasons=dict(reasons.most_common(_REASONS)),
        missing=sum(one.missing for one in judgements),
    )


def _asked(row: Label, question: Question | None) -> Answer:
    """What the judge is shown: many labelled answers are references, and none is compared with itself."""
    if question is None:
        return Answer(row.question, row.answer)
    own = normalise(row.answer)
    sides = (question.references, question.incorrect)
    return Answer(
        row.question, row.answer, *(tuple(one for one in side if normalise(one) != own) for side in sides)
    )
