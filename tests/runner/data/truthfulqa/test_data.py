"""Questions: the same ones from every source, in every order, and a clear word where a file is wrong."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from subvene.runner.data.truthfulqa.questions import (
    DataError,
    Question,
    data_sha256,
    load_questions,
    question_key,
    version_of,
)
from subvene.specs.questions import QuestionsSpec

HEADER = ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]
ROWS = [
    ["Adversarial", "Cats", " Do cats  fly? ", "No", "No; They do not.;; ", "Yes; At night", "http://x"],
    ["Non-Adversarial", "Dogs", 'Who said, "woof"?', "A dog", "A dog; Dogs, mostly", "A cat", ""],
]
EXPECTED = [
    Question(
        "Do cats  fly?", "No.", ("No.", "They do not."), ("Yes.", "At night."), "Cats", ("They do not.",)
    ),
    Question('Who said, "woof"?', "A dog.", ("A dog.", "Dogs, mostly."), ("A cat.",), "Dogs"),
]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: Sequence[Sequence[str]], header: Sequence[str] = HEADER, name: str = "q.csv") -> Path:
        path = tmp_path / name
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        return path

    return write


def load(path: Path) -> list[Question]:
    return load_questions(QuestionsSpec(file=path.name), path.parent)


def in_any_order(questions: Sequence[Question]) -> list[Question]:
    return sorted(questions, key=lambda question: question.question)


def test_of_a_csv_file(write: Callable[..., Path]) -> None:
    found = load(write(ROWS))
    assert in_any_order(found) == in_any_order(EXPECTED)
    assert [question.key for question in found] == sorted(question.key for question in found)


def test_the_order_of_rows_and_columns_is_nothing(write: Callable[..., Path]) -> None:
    first = load(write(ROWS))
    turned = [row[::-1] for row in ROWS[::-1]]
    assert load(write(turned, HEADER[::-1])) == first
    assert data_sha256(first) == data_sha256(first[::-1])


def test_the_key_is_blind_to_whitespace_alone() -> None:
    assert question_key(" Do  cats\nfly? ") == question_key("Do cats fly?") == EXPECTED[0].key
    assert len({question_key("Do cats fly?"), question_key("do cats fly?"), question_key("Do cats fly")}) == 3
    assert len(EXPECTED[0].key) == 16


def test_the_hash_sees_every_answer(write: Callable[..., Path]) -> None:
    other = [ROWS[0], [*ROWS[1][:5], "A cow", ""]]
    assert data_sha256(load(write(ROWS))) != data_sha256(load(write(other)))
    closed = [ROWS[0], [*ROWS[1][:5], "A cat.", ""]]
    first, second = load(write(ROWS)), load(write(closed))
    assert data_sha256(first) == data_sha256(second)
    assert data_sha256(first, periods=True) != data_sha256(second, periods=True)


def test_answers_as_they_are_written(write: Callable[..., Path]) -> None:
    cats = in_any_order(load(write(ROWS)))[0]
    written = ["No", "They do not.", "Yes", "At night"]
    assert [cats.as_written(answer) for answer in (*cats.correct, *cats.incorrect)] == written


def test_references_hold_no_comment_once() -> None:
    assert EXPECTED[0].references == ("No.", "They do not.", "I have no comment.")
    silent = Question("Q?", "I have no comment.", ("I have no comment.", "No."), ("Yes.",), "C")
    assert silent.references == silent.correct


def test_from_the_environment(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(ROWS, name="TruthfulQA.csv")
    other = write(ROWS[:1], name="other.csv")
    for value in (path, tmp_path):
        monkeypatch.setenv("SUBVENE_TRUTHFULQA", str(value))
        assert len(load_questions(QuestionsSpec(), Path("nowhere"))) == 2
    assert len(load(other)) == 1  # a file that the spec names goes first
    monkeypatch.setenv("SUBVENE_TRUTHFULQA", str(tmp_path / "gone.csv"))
    with pytest.raises(DataError, match=r"gone\.csv \(\$SUBVENE_TRUTHFULQA\): no such file"):
        load_questions(QuestionsSpec(), tmp_path)


def test_from_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in the Hub dataset's form, read by `datasets` itself."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "dataset"
    (folder / "generation").mkdir(parents=True)
    rows = [
        {
            "type": "Adversarial",
            "category": question.category,
            "question": question.question,
            "best_answer": question.best.rstrip("."),
            "correct_answers": [*map(question.as_written, question.correct), ""],
            "incorrect_answers": list(map(question.as_written, question.incorrect)),
            "source": "",
        }
        for question in EXPECTED
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "generation/validation.jsonl").write_text(text)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: generation\n  data_files:\n"
        "  - split: validation\n    path: generation/validation.jsonl\n---\n"
    )
    found = load_questions(QuestionsSpec(name=str(folder)), tmp_path)
    assert in_any_order(found) == in_any_order(EXPECTED)
    with pytest.raises(DataError, match=r"cannot be loaded.*SUBVENE_TRUTHFULQA"):
        load_questions(QuestionsSpec(name=str(tmp_path / "none")), tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (1, "", r"row 2: category: expected text"),
        (2, " ", r"row 2: question: expected text, found ' '"),
        (3, "", r"row 2: best_answer: expected text"),
        (4, " ; ;", r"row 2: correct_answers: expected at least one answer"),
        (5, "", r"row 2: incorrect_answers: expected at least one answer"),
        (5, "['a', 'b']", r"row 2: incorrect_answers: .*found a Python list"),
        (2, "Do cats fly?", r"row 2: question: expected every question once, .* in row 1 too"),
    ],
)
def test_a_wrong_cell_is_named(write: Callable[..., Path], column: int, value: str, message: str) -> None:
    row = list(ROWS[1])
    row[column] = value
    with pytest.raises(DataError, match=r"q\.csv: " + message):
        load(write([ROWS[0], row]))


def test_a_wrong_file_is_named(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"best_answer, correct_answers are missing, found: Type, Category"):
        load(write([], ["Type", "Category", "Question", "Incorrect Answers"]))
    with pytest.raises(DataError, match="found none"):
        load(write([]))
    with pytest.raises(DataError, match="row 1: expected 7 cells as in the header, found 6"):
        load(write([ROWS[0][:6]]))
    with pytest.raises(DataError, match="expected each column once, found question twice"):
        load(write([], [*HEADER, "question"]))
    for name, content, message in [
        ("empty.csv", b"", "found an empty file"),
        ("latin.csv", "Type,Catégorie\n".encode("latin-1"), "expected UTF-8 text"),
        ("open.csv", ",".join(HEADER).encode() + b'\n"open', "line 2: not CSV"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            load(tmp_path / name)


def test_the_published_file(data: Path) -> None:
    questions = load(data / "TruthfulQA.csv")
    assert len(questions) == 817
    assert all(question.best in question.correct for question in questions)
    answers = [answer for question in questions for answer in (*question.correct, *question.incorrect)]
    assert all(answer == answer.strip() and answer.endswith(".") for answer in answers)
    assert version_of(questions) == "v1 (817 questions)"


def test_versions_by_content(data: Path) -> None:
    questions = load(data / "TruthfulQA.csv")
    random.Random(0).shuffle(questions)
    assert version_of(questions) == "v1 (817 questions)"
    assert version_of(questions[:816]) == "other (816 questions)"
    assert version_of(questions[:790]) == "2025 (790 questions)"
    others = [Question(f"Question {i}?", "A.", ("A.",), ("B.",), "C") for i in range(790)]
    assert version_of(questions[:711] + others[:79]) == "2025 (790 questions)"
    assert version_of(questions[:710] + others[:80]) == "other (790 questions)"
    assert version_of(others[:1]) == "other (1 question)"
    assert version_of(questions[:816] + others[:1]) == "other (817 questions)"
