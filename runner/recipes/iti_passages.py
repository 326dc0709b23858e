"""The texts that ITI reads: every answer to its question, and once more before another question."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from subvene.runner.data.text import plain
from subvene.runner.data.truthfulqa.questions import Question
from subvene.runner.passes.passages import Passage, common_prefix, last, shared_prefix
from subvene.specs import ITISpec


@dataclass(frozen=True)
class TuningAnswer:
    """One answer to a tuning question.

    Attributes:
        question: which.
        text: the answer, closed with a period.
        is_true: whether it is one of the true ones.
    """

    question: Question
    text: str
    is_true: bool


def passages(answers: Sequence[TuningAnswer], tokenizer: Any, spec: ITISpec) -> list[Passage]:
    """Each `Q: q A: a Q: r`, read at the end of the answer and at the end of the text.

    The rows of an answer: the mean of its last `last_n` tokens; that of `direction_last_n`, where that is
    given; and that of as many at the end of the question after it, of which no more is read than is its own.
    """
    questions = {answer.question.key: answer.question for answer in answers}
    listed, place = list(questions.values()), {key: i for i, key in enumerate(questions)}
    starts, texts, tails = [], [], []
    for answer in answers:
        start = f"Q: {plain(tokenizer, answer.question.question, 'a question')} A:"
        plain(tokenizer, answer.text, "an answer")
        starts.append(start)
        texts.append(f"{start} {_read_as(answer, spec.periods)}")
        tails.append(f" Q: {_other(answer, listed, place[answer.question.key]).question}")
    alone = _tokenized(tokenizer, texts)
    # Where the question begins after `Q:`, whose tokens are no part of it.
    marks = _tokenized(tokenizer, [f"{text} Q:" for text in texts])
    whole = _tokenized(tokenizer, [text + tail for text, tail in zip(texts, tails, strict=True)])
    rows, begins = [], []
    for ids, mark, longer, tail in zip(alone, marks, whole, tails, strict=True):
        begin = common_prefix([mark, longer])
        if longer[: len(ids)] != ids:
            # The boundary is no boundary of tokens; what is read at the end of the answer must be the answer.
            own, sign = (_tokenized(tokenizer, [t], add_special_tokens=False)[0] for t in (tail, " Q:"))
            longer, begin = ids + own, len(ids) + common_prefix([sign, own])
        rows.append(longer)
        begins.append(min(begin, len(longer) - 1))
    groups: dict[str, list[int]] = {}
    for i, answer in enumerate(answers):
        groups.setdefault(answer.question.key, []).append(i)
    found: dict[int, Passage] = {}
    first = dict(zip(starts, _tokenized(tokenizer, starts), strict=True))
    windows = [spec.last_n] if spec.direction_last_n is None else [spec.last_n, spec.direction_last_n]
    for group in groups.values():
        shared = shared_prefix([rows[i] for i in group])
        for i in group:
            # An answer of fewer tokens is read whole, and nothing of its question.
            answer_start = min(common_prefix([first[starts[i]], alone[i]]), len(alone[i]) - 1)
            ends = [last(len(alone[i]), window, answer_start) for window in windows]
            found[i] = Passage(rows[i], (*ends, last(len(rows[i]), windows[-1], begins[i])), shared)
    return [found[i] for i in range(len(answers))]


def _tokenized(tokenizer: Any, texts: Sequence[str], **options: Any) -> list[tuple[int, ...]]:
    return [tuple(ids) for ids in tokenizer(list(texts), **options)["input_ids"]] if texts else []


def _read_as(answer: TuningAnswer, periods: str) -> str:
    """An answer as it is read: multiple choice closes all of them with a period, which is taken off again."""
    if periods == "as_written":
        return answer.question.as_written(answer.text)
    return answer.text.removesuffix(".") or answer.text


def _other(answer: TuningAnswer, questions: Sequence[Question], own: int) -> Question:
    """Another tuning question than the `own`-th, drawn by the content of question and answer."""
    text = json.dumps([answer.question.question, answer.text, answer.is_true])
    drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % (len(questions) - 1)
    return questions[drawn + (drawn >= own)]  # among the questions before its own and those after it
