"""Preferences as text, from a file or the Hub, and as token ids, ready to be trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from subvene.runner.data.declared_rows import declared_rows
from subvene.runner.data.examples import Example
from subvene.runner.data.preference_rows import Preference, PreferenceError, Preferences, preferences_of
from subvene.runner.data.text import TextError, prompt_ids, reply_ids
from subvene.runner.data.truthfulqa.prompts import Prompts, load_prompts
from subvene.runner.data.truthfulqa.questions import Question, data_sha256, load_questions
from subvene.runner.data.truthfulqa.splits import limited
from subvene.specs.preferences import TriplesSpec, TruthfulPairsSpec

__all__ = [
    "Data",
    "Preference",
    "PreferenceError",
    "Preferences",
    "encode",
    "preferences_sha256",
    "read_data",
    "used",
]

Data = Sequence[Preference] | Sequence[Question]
"""What a spec's `data` names: triples, or TruthfulQA's questions."""


def read_data(spec: TriplesSpec | TruthfulPairsSpec, folder: Path, *, completions: bool = False) -> Data:
    """The preferences that a spec names, as text.

    Args:
        spec: where they are.
        folder: what a relative file is looked for in.
        completions: as for `preferences_of`.

    Raises:
        PreferenceError: there is no such file or dataset, or a row is not what it should be.
        DataError: TruthfulQA cannot be read.
    """
    if isinstance(spec, TruthfulPairsSpec):
        return load_questions(spec.truthfulqa, folder)
    rows = declared_rows(spec, folder, PreferenceError)
    return preferences_of(rows, spec, str(spec.dataset or spec.file), completions=completions)


def preferences_sha256(data: Data) -> str:
    """A hash of what the data say; of triples, of their order too."""
    questions = [one for one in data if isinstance(one, Question)]
    if questions:
        return data_sha256(questions, periods=True)
    rows = [asdict(one) for one in data if isinstance(one, Preference)]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def encode(spec: TriplesSpec | TruthfulPairsSpec, data: Data, tokenizer: Any) -> list[Example]:
    """Token ids of every pair; of a TruthfulQA question each true answer stands against each false one.

    Args:
        spec: how prompts are put and answers closed.
        data: what `read_data` gives.
        tokenizer: the model's.

    Raises:
        TextError: a prompt or an answer holds no token, or the tokenizer has no template or no end token.
    """
    end = _end(tokenizer) if spec.end else ()
    if isinstance(spec, TruthfulPairsSpec):
        questions = [one for one in data if isinstance(one, Question)]
        return _of_questions(spec, questions, tokenizer, end)
    examples = []
    for one in data:
        if not isinstance(one, Preference):
            raise TypeError("expected triples, found questions; `data` is a file or a dataset")
        prompt = prompt_ids(tokenizer, one.prompt, chat=spec.chat)
        (before, chosen), (other, rejected) = (
            reply_ids(tokenizer, prompt, text) for text in (one.chosen, one.rejected)
        )
        if before != other:
            raise TextError(
                f"reasoning: keep: of the answers {one.chosen[:40]!r} and {one.rejected[:40]!r} one begins "
                "with a block of reasoning and one does not, so they answer different prompts of this "
                "model's template; give both one, or none"
            )
        examples.append(Example(one.key, tuple(before), (*chosen, *end), (*rejected, *end)))
    return examples


def used(spec: TriplesSpec | TruthfulPairsSpec, questions: Sequence[Question]) -> list[Question]:
    """Of some questions those whose pairs are trained on or validated with."""
    return limited(questions, spec.limit)


def _of_questions(
    spec: TruthfulPairsSpec, questions: Sequence[Question], tokenizer: Any, end: tuple[int, ...]
) -> list[Example]:
    prompts = _prompts(spec)
    ordered = sorted(used(spec, questions), key=lambda question: question.key)
    asked = [question.question for question in ordered]
    encoded = prompts.encode(tokenizer, asked, answered=True).prompts
    examples = []
    for question, prompt in zip(ordered, encoded, strict=True):
        pairs = _pairs(question, spec.per_question)
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        ids = dict(zip(texts, prompts.answer_ids(tokenizer, texts), strict=True)) if texts else {}
        examples += [
            Example(question.key, prompt, (*ids[chosen], *end), (*ids[rejected], *end))
            for chosen, rejected in pairs
        ]
    return examples


def _pairs(question: Question, most: int | None) -> list[tuple[str, str]]:
    """Each true answer with each false one; if these are too many, some, chosen by what they say."""
    pairs = [
        (true, false)
        for true in dict.fromkeys(question.correct)
        for false in dict.fromkeys(question.incorrect)
    ]
    if most is None or len(pairs) <= most:
        return pairs
    drawn = sorted(pairs, key=lambda pair: hashlib.sha256(json.dumps(["pair", *pair]).encode()).digest())
    return [pair for pair in pairs if pair in set(drawn[:most])]


def _prompts(spec: TruthfulPairsSpec) -> Prompts:
    if spec.preset == "bare":
        return Prompts("qa", (), None)
    if spec.preset == "chat":
        return Prompts("chat", (), None)
    return load_prompts(spec.preset, None, None, Path())


def _end(tokenizer: Any) -> tuple[int, ...]:
    if tokenizer.eos_token_id is None:
        raise TextError("this tokenizer has no end-of-sequence token; set `end: false` under `fit.data`")
    return (int(tokenizer.eos_token_id),)
