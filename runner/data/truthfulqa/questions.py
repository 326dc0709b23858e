"""TruthfulQA's questions, from a file or the Hub, told apart by what they say and never by their row."""

from __future__ import annotations

import csv
import hashlib
import importlib.resources
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from subvene.runner.files.json_value import Json
from subvene.specs import SubveneError
from subvene.specs.questions import QuestionsSpec
from subvene.specs.regular_file import open_regular
from subvene.specs.rows import Row, file_rows, given_rows, short

ENVIRONMENT = "SUBVENE_TRUTHFULQA"
NO_COMMENT = "I have no comment."
_FILE = "TruthfulQA.csv"
_SUBSET = "generation"
_COLUMNS = ("category", "question", "best_answer", "correct_answers", "incorrect_answers")
# sha256 over the sorted keys of the 817 questions of 2021, joined by newlines.
_V1 = "656b961bdc5f5a4170499290cf57f59d0d937f786298287bf477cc42b2cde674"
_PREFIX = 6
_MUST_KNOW = 0.9


class DataError(SubveneError, ValueError):
    """TruthfulQA's questions cannot be read as they stand."""


@dataclass(frozen=True)
class Question:
    """One question and its reference answers, every answer closed with a period.

    Attributes:
        question: the question, stripped.
        best: the best true answer.
        correct: the true answers, in the file's order.
        incorrect: the false answers, in the file's order.
        category: the category that its authors gave it.
        with_period: the answers that the data itself closes with a period.
    """

    question: str
    best: str
    correct: tuple[str, ...]
    incorrect: tuple[str, ...]
    category: str
    with_period: tuple[str, ...] = ()

    def as_written(self, answer: str) -> str:
        """One of its answers as the data has it, with a period at its end or without."""
        return answer if answer in self.with_period else answer.removesuffix(".") or answer

    @property
    def key(self) -> str:
        """What names this question everywhere: its text's sha256, 16 hex digits, blind to whitespace."""
        return question_key(self.question)

    @property
    def references(self) -> tuple[str, ...]:
        """The true answers that a generated one is compared with.

        TruthfulQA's automated metrics count "I have no comment." as true of every question; multiple choice
        does not, and has only the answers of the file.
        """
        return self.correct if NO_COMMENT in self.correct else (*self.correct, NO_COMMENT)


def question_key(text: str) -> str:
    """The key of a question's text (`Question.key`)."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def load_questions(source: QuestionsSpec, folder: Path) -> list[Question]:
    """TruthfulQA's questions, sorted by key, so that no order of rows can matter.

    Read from `source.file`; else from what $SUBVENE_TRUTHFULQA names, such a file or a folder with
    TruthfulQA.csv in it; else from the Hub.

    Args:
        source: which questions are meant.
        folder: what `source.file` is relative to.

    Raises:
        DataError: nothing is there, or a row is not what it should be: file, row (from 1, below the header)
            and column are named.
    """
    if source.file is not None:
        return _from_file(folder / source.file)
    if named := os.environ.get(ENVIRONMENT):
        path = Path(named).expanduser()
        return _from_file(path / _FILE if path.is_dir() else path, f" (${ENVIRONMENT})")
    return _from_hub(source)


def given_questions(data: Any) -> list[Question]:
    """Questions that a caller hands over, or rows of them with TruthfulQA's columns; sorted by key.

    Raises:
        DataError: a row is not what it should be.
    """
    if isinstance(data, Sequence) and all(isinstance(one, Question) for one in data):
        return list(data)
    return _from_rows(given_rows(data, DataError), "data")


def version_of(questions: Sequence[Question]) -> str:
    """Which TruthfulQA this is, by content.

    The 817 questions of 2021 are recognised exactly. The 2025 revision removed 27 of them and reworded
    some: it is recognised by its count and by at least 90 % of its questions being among the 817.
    """
    keys = sorted(question.key for question in questions)
    if hashlib.sha256("\n".join(keys).encode()).hexdigest() == _V1:
        return "v1 (817 questions)"
    known = sum(key[:_PREFIX] in _v1_prefixes() for key in keys)
    if len(keys) == 790 and known >= _MUST_KNOW * len(keys):
        return "2025 (790 questions)"
    return f"other ({len(keys)} question{'s' * (len(keys) != 1)})"


def about_data(questions: Sequence[Question]) -> dict[str, Json]:
    """What a manifest says of some questions: which TruthfulQA, how many, their hash."""
    return {
        "version": version_of(questions),
        "questions": len(questions),
        "sha256": data_sha256(questions),
    }


def data_sha256(questions: Iterable[Question], *, periods: bool = False) -> str:
    """A hash of everything that the questions say, whatever their order.

    Args:
        questions: which.
        periods: also which answers the data closes with a period: what is written to a prompt depends on it.
    """
    rows = sorted((asdict(question) for question in questions), key=lambda row: question_key(row["question"]))
    for row in rows:
        ends = row.pop("with_period")
        if periods and ends:
            row["with_period"] = ends
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


@cache
def _v1_prefixes() -> frozenset[str]:
    text = (
        importlib.resources.files("subvene.runner.data.truthfulqa").joinpath("v1_keys.txt").read_text("ascii")
    )
    return frozenset(text.split())


def _from_rows(rows: Iterable[Row], name: str) -> list[Question]:
    found = []
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: expected a row with columns, found {short(row)}")
        found.append(row)
    header = list(dict.fromkeys(column for row in found for column in row))
    columns = {column: header[i] for column, i in _find_columns(header, name).items()}
    return _questions([{column: row.get(name) for column, name in columns.items()} for row in found], name)


def _from_file(path: Path, whence: str = "") -> list[Question]:
    name = f"{path}{whence}"
    if path.suffix.lower() in (".jsonl", ".json"):
        return _from_rows(file_rows(path, DataError), name)
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if header is None:
                raise DataError(f"{name}: expected TruthfulQA's questions, found an empty file")
            columns = _find_columns(header, name)
            rows = []
            for number, cells in enumerate(reader, 1):
                if len(cells) != len(header):
                    raise DataError(
                        f"{name}: row {number}: expected {len(header)} cells as in the header, found "
                        f"{len(cells)}; a cell with commas in it stands in double quotes"
                    )
                rows.append({column: cells[i] for column, i in columns.items()})
    except FileNotFoundError as error:
        raise DataError(
            f"{name}: no such file; expected TruthfulQA as a CSV file (TruthfulQA.csv of "
            "github.com/sylinrl/TruthfulQA)"
        ) from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: expected UTF-8 text, found {error.reason} at byte {error.start}") from error
    except csv.Error as error:
        raise DataError(f"{name}: line {reader.line_num}: not CSV: {error}") from error
    return _questions(rows, name)


def _from_hub(source: QuestionsSpec) -> list[Question]:
    import datasets

    where = source.name if source.revision is None else f"{source.name}@{source.revision}"
    name = f"dataset {where}, {_SUBSET}"
    try:
        loaded = datasets.load_dataset(
            source.name, _SUBSET, revision=source.revision, trust_remote_code=False
        )
    # Its own errors, those of the network, and ValueError for a name or a configuration that is not there.
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name}: cannot be loaded: {error}. Without a network, set `data: {{file: …}}` or "
            f"${ENVIRONMENT} to TruthfulQA.csv"
        ) from error
    if len(loaded) != 1:
        raise DataError(f"{name}: expected one split, found {', '.join(loaded)}")
    (split,) = loaded.values()
    columns = _find_columns(split.column_names, name)
    rows = [{column: row[split.column_names[i]] for column, i in columns.items()} for row in split]
    return _questions(rows, name)


def _find_columns(header: Sequence[str], name: str) -> dict[str, int]:
    """Where each column stands; `Best Answer` of the CSV is `best_answer` of the Hub."""
    found = ["_".join(cell.lower().split()) for cell in header]
    missing = [column for column in _COLUMNS if column not in found]
    if missing:
        raise DataError(
            f"{name}: expected the columns {', '.join(_COLUMNS)}; {', '.join(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} missing, found: {', '.join(header)}"
        )
    twice = [column for column in _COLUMNS if found.count(column) > 1]
    if twice:
        raise DataError(f"{name}: expected each column once, found {', '.join(twice)} twice")
    return {column: found.index(column) for column in _COLUMNS}


def _questions(rows: Sequence[Mapping[str, JsonValue]], name: str) -> list[Question]:
    if not rows:
        raise DataError(f"{name}: expected TruthfulQA's questions, found none")
    seen: dict[str, int] = {}
    questions = []
    for number, row in enumerate(rows, 1):
        where = f"{name}: row {number}"
        text, best = _text(row, "question", where), _text(row, "best_answer", where)
        correct, incorrect = (_answers(row, f"{side}_answers", where) for side in ("correct", "incorrect"))
        question = Question(
            question=text,
            best=_closed(best),
            correct=tuple(map(_closed, correct)),
            incorrect=tuple(map(_closed, incorrect)),
            category=_text(row, "category", where),
            with_period=tuple(dict.fromkeys(a for a in (*correct, *incorrect) if a.endswith("."))),
        )
        first = seen.setdefault(question.key, number)
        if first != number:
            raise DataError(
                f"{where}: question: expected every question once, found {question.question!r} in row "
                f"{first} too"
            )
        questions.append(question)
    return sorted(questions, key=lambda question: question.key)


def _text(row: Mapping[str, JsonValue], column: str, where: str) -> str:
    value = row[column]
    text = value.strip() if isinstance(value, str) else ""
    if not text:
        raise DataError(f"{where}: {column}: expected text, found {value!r}")
    return text


def _answers(row: Mapping[str, JsonValue], column: str, where: str) -> tuple[str, ...]:
    """The answers of a cell as they are written: a list on the Hub, `;` between them in the CSV."""
    value = row[column]
    if isinstance(value, str) and value.lstrip().startswith(("['", '["')):
        raise DataError(
            f"{where}: {column}: expected answers with `;` between them, found a Python list: {value[:60]!r}"
        )
    given: object = value.split(";") if isinstance(value, str) else value
    if not isinstance(given, Sequence) or not all(isinstance(answer, str) for answer in given):
        raise DataError(f"{where}: {column}: expected answers, found {given!r}")
    answers = tuple(answer.strip() for answer in given if answer.strip())
    if not answers:
        raise DataError(f"{where}: {column}: expected at least one answer, found {row[column]!r}")
    return answers


def _closed(answer: str) -> str:
    """An answer as published scores have it: with a period at its end."""
    return answer if answer.endswith(".") else f"{answer}."
