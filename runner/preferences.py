"""Preferences as text, from a file or the Hub, and as token ids, ready to be trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from subvene.runner.text import Messages, TextError, prompt_ids, response_ids
from subvene.runner.training.examples import Example
from subvene.runner.truthfulqa.data import Question, data_sha256, load_questions
from subvene.runner.truthfulqa.prompts import Prompts, load_prompts
from subvene.runner.truthfulqa.splits import limited
from subvene.specs import SubveneError
from subvene.specs.preferences import TriplesSpec, TruthfulPairsSpec
from subvene.specs.regular_file import read_text


class PreferenceError(SubveneError, ValueError):
    """Preferences cannot be read; the message names the file and line, or the dataset and row."""


@dataclass(frozen=True)
class Preference:
    """A prompt, the answer that is wanted and the one that is not.

    Attributes:
        prompt: a user's turn or raw text, or messages with `role` and `content`.
        chosen: the wanted answer.
        rejected: the unwanted one.
    """

    prompt: str | Messages
    chosen: str
    rejected: str

    @property
    def key(self) -> str:
        """What names the question: a hash of the prompt."""
        return hashlib.sha256(json.dumps(self.prompt, ensure_ascii=False).encode()).hexdigest()[:16]


Data = Sequence[Preference] | Sequence[Question]
"""What a spec's `data` names: triples, or TruthfulQA's questions."""


def read_data(spec: TriplesSpec | TruthfulPairsSpec, folder: Path) -> Data:
    """The preferences that a spec names, as text.

    Args:
        spec: where they are.
        folder: what a relative file is looked for in.

    Raises:
        PreferenceError: there is no such file or dataset, or a row is not what it should be.
        DataError: TruthfulQA cannot be read.
    """
    if isinstance(spec, TruthfulPairsSpec):
        return load_questions(spec.truthfulqa, folder)
    rows = (
        _of_dataset(spec)
        if spec.dataset is not None
        else _of_file(folder / Path(spec.file or "").expanduser())
    )
    preferences = [_preference(row, where, spec) for where, row in islice(rows, spec.limit)]
    if not preferences:
        raise PreferenceError(f"{spec.dataset or spec.file}: holds no preference")
    return preferences


def preferences_sha256(data: Data) -> str:
    """A hash of what the data say; of triples, of their order too."""
    questions = [one for one in data if isinstance(one, Question)]
    if questions:
        return data_sha256(questions)
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
        answers = [(*response_ids(tokenizer, text), *end) for text in (one.chosen, one.rejected)]
        prompt = tuple(prompt_ids(tokenizer, one.prompt, chat=spec.chat))
        examples.append(Example(one.key, prompt, answers[0], answers[1]))
    return examples


def used(spec: TriplesSpec | TruthfulPairsSpec, questions: Sequence[Question]) -> list[Question]:
    """Of some questions those whose pairs are trained on or validated with."""
    return limited(questions, spec.limit)


def _of_questions(
    spec: TruthfulPairsSpec, questions: Sequence[Question], tokenizer: Any, end: tuple[int, ...]
) -> list[Example]:
    prompts = _prompts(spec)
    ordered = sorted(used(spec, questions), key=lambda question: question.key)
    encoded = prompts.encode(tokenizer, [question.question for question in ordered]).prompts
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


def _of_file(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        content = read_text(path, "utf-8-sig")
    except OSError as error:
        raise PreferenceError(
            f"{path}: cannot be read ({error.strerror}); it is looked for beside the spec"
        ) from error
    except UnicodeDecodeError as error:
        raise PreferenceError(f"{path}: not UTF-8 text (byte {error.start}: {error.reason})") from error
    # Not splitlines: JSON text may hold U+2028 as it is.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PreferenceError(f"{where}: not JSON ({error})") from error


def _of_dataset(spec: TriplesSpec) -> Iterator[tuple[str, Any]]:
    import datasets

    name = f"{spec.dataset}{'' if spec.subset is None else f' ({spec.subset})'}, {spec.split}"
    try:
        loaded = datasets.load_dataset(
            spec.dataset,
            spec.subset,
            split=spec.split,
            revision=spec.revision,
            trust_remote_code=False,
        )
    # Its own errors, those of the network, and ValueError for a name or a configuration that is not there.
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise PreferenceError(f"dataset {name}: cannot be loaded: {error}") from error
    for number, row in enumerate(loaded):
        yield f"dataset {name}: row {number}", row


def _preference(row: Any, where: str, spec: TriplesSpec) -> Preference:
    if not isinstance(row, Mapping):
        raise PreferenceError(f"{where}: expected an object, found {_short(row)}")
    before, chosen = _answer(row, where, spec.chosen)
    other, rejected = _answer(row, where, spec.rejected)
    prompt = row.get(spec.prompt)
    if prompt is None:
        if not before:
            raise PreferenceError(
                f"{where}: expected the field {spec.prompt!r}, found: {', '.join(map(str, row))}"
            )
        if before != other:
            raise PreferenceError(
                f"{where}: {spec.chosen} and {spec.rejected} answer different prompts; give the prompt a "
                "field of its own"
            )
        prompt = before
    elif isinstance(prompt, list):
        prompt = _messages(prompt, where, spec.prompt)
    if not prompt or not isinstance(prompt, str | list):
        raise PreferenceError(f"{where}: {spec.prompt}: expected text or messages, found {_short(prompt)}")
    if chosen == rejected:
        raise PreferenceError(f"{where}: {spec.chosen} and {spec.rejected} are the same answer")
    return Preference(prompt, chosen, rejected)


def _answer(row: Mapping[str, Any], where: str, field: str) -> tuple[Messages, str]:
    """What stands before an answer in its own field (nothing, for text), and the answer."""
    if field not in row:
        raise PreferenceError(f"{where}: expected the field {field!r}, found: {', '.join(map(str, row))}")
    value = row[field]
    if isinstance(value, str) and value.strip():
        return [], value
    if not isinstance(value, list) or not value:
        raise PreferenceError(f"{where}: {field}: expected text or messages, found {_short(value)}")
    *before, last = _messages(value, where, field)
    if last["role"] != "assistant" or not last["content"].strip():
        raise PreferenceError(f"{where}: {field}: expected an assistant's answer as the last message")
    return before, last["content"]


def _messages(value: list[Any], where: str, field: str) -> Messages:
    for message in value:
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(part), str) for part in ("role", "content")
        ):
            raise PreferenceError(
                f"{where}: {field}: expected messages with `role` and `content`, found {_short(message)}"
            )
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
