"""Multiple choice: what an edit costs in everyday knowledge, on questions that subvene ships."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from subvene.runner.data.text import response_ids
from subvene.runner.edits.receipt import Receipt
from subvene.runner.intervened.generate import Score
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.prefix import Continued, continuation_log_probs, why_not_shared
from subvene.runner.intervened.scoring import log_probs

SHIPPED = Path(__file__).parent / "multiple_choice.json"
_ASKED = "Question: {question}\nAnswer:"


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question, the choices, and which of them is right (0-based)."""

    question: str
    choices: tuple[str, ...]
    answer: int


def shipped_questions(limit: int | None = None) -> list[ChoiceQuestion]:
    """The first `limit` (all if None) of the questions that subvene ships, of its own writing."""
    rows = json.loads(SHIPPED.read_text(encoding="utf-8"))["questions"][:limit]
    return [ChoiceQuestion(row["question"], tuple(row["choices"]), row["answer"]) for row in rows]


def questions_sha256(questions: Sequence[ChoiceQuestion]) -> str:
    """A hash of questions, choices and answers."""
    content = [[one.question, one.choices, one.answer] for one in questions]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def choose(
    m: IntervenedModel,
    questions: Sequence[ChoiceQuestion],
    *,
    batch_size: int = 32,
    before: str | None = None,
    score: Score | None = None,
) -> tuple[list[int], list[Receipt]]:
    """Which choice the model takes: the one of the largest log-probability per token after `Answer:`.

    Args:
        m: the model; its edits act unless it is disabled. The question is the prompt, a choice the response.
        questions: what is asked.
        batch_size: questions at a time.
        before: a paragraph that stands before every question; None: nothing.
        score: scores every choice with its whole prompt; None: on top of what prompts have in common.

    Returns:
        The index of the chosen answer for each question, and the receipts.
    """
    tokenizer = m.tokenizer
    start = "" if before is None else f"{before}\n\n"
    texts = [start + _ASKED.format(question=one.question) for one in questions]
    prompts = [list(tokenizer(text)["input_ids"]) for text in texts]
    choices = [[response_ids(tokenizer, f" {choice}") for choice in one.choices] for one in questions]
    shared = _common(prompts)
    if score is None and why_not_shared(m, shared, prompts) is None:
        scores, receipts = continuation_log_probs(
            m, Continued(shared, prompts, choices), batch_size=batch_size, description="multiple choice"
        )
        by_question = [one.tolist() for one in scores]
    else:
        pairs = [(prompt, ids) for prompt, row in zip(prompts, choices, strict=True) for ids in row]
        flat, receipts = (score or log_probs)(m, pairs, batch_size=batch_size, description="multiple choice")
        values = iter(flat.tolist())
        by_question = [[next(values) for _ in row] for row in choices]
    chosen = []
    for values_of, row in zip(by_question, choices, strict=True):
        per_token = [value / len(ids) for value, ids in zip(values_of, row, strict=True)]
        chosen.append(per_token.index(max(per_token)))
    return chosen, receipts


def accuracy(m: IntervenedModel, questions: Sequence[ChoiceQuestion]) -> float:
    """The share of questions of which the model takes the right choice."""
    chosen, _ = choose(m, questions)
    return sum(i == one.answer for i, one in zip(chosen, questions, strict=True)) / len(questions)


def _common(rows: Sequence[Sequence[int]]) -> list[int]:
    """What all rows begin with; of each row at least one token is left over."""
    shortest = min(map(len, rows)) - 1
    count = 0
    while count < shortest and len({row[count] for row in rows}) == 1:
        count += 1
    return list(rows[0][:count])
