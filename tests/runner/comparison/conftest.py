"""A comparison small enough to run in seconds: a tiny model, twelve questions, every part real."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

QUESTIONS = [
    ("how are you", "i am very happy", ["i am very happy", "i am good"], ["i am sad", "you are gloomy"]),
    ("how is the day", "the day is good", ["the day is good"], ["the day is bad", "it is rain"]),
    ("tell me about the train", "the train is good", ["the train is good", "it is a train"], ["the sun"]),
    ("are you sad", "i am not sad", ["i am not sad", "not very"], ["very sad", "i am gloomy"]),
    ("are you happy", "i am happy", ["i am happy", "i am glad"], ["i am sad"]),
    ("is the sun bad", "the sun is not bad", ["the sun is not bad"], ["the sun is bad", "bad"]),
    ("is the rain good", "the rain is good", ["the rain is good", "good"], ["the rain is bad"]),
    ("tell me about the world", "hello world", ["hello world", "the world is good"], ["the world is sad"]),
    ("is it rain", "it is not", ["it is not", "the sun"], ["it is", "rain and rain"]),
    ("are you gloomy", "not gloomy", ["not gloomy", "i am glad"], ["very gloomy", "gloomy and sad"]),
    ("is the world good", "it is good", ["it is good", "very good"], ["it is bad", "a bad world"]),
    ("tell me about rain", "rain is good", ["rain is good", "it is rain"], ["rain is sad", "rain is bad"]),
]

COMPARISON = """\
fit: {recipe: iti, key: t, data: {file: questions.csv}, select: {rule: top_k, k: 3}, validation: 0.34}
interventions:
- {kind: head_direction, name: iti, directions: {key: t}, strength: 3, positions: response}
conditions:
- {name: baseline, interventions: []}
- {name: off, set: {iti.strength: 0}}
- {name: iti}
- {name: best, sweep: {iti.strength: [1, 5], fit.select.k: [2, 4]}, choose: {by: mc2}}
- {name: everywhere, like: best, set: {iti.positions: all}}
- {name: baked, like: best, set: {iti.positions: all}, bake: true}
seeds: [1, 2]
folds: 2
evaluate:
- {kind: truthfulqa, data: {file: questions.csv}, preset: qa, primer: primer.txt, max_new_tokens: 5,
   judge: {kind: reference}}
- {kind: divergence, texts: {file: texts.txt}, max_tokens: 8}
"""
PRIMER = "Q: how are you\nA: i am good\n\nQ: is it rain\nA: it is not\n"
TEXTS = "the sun is good and the rain is bad\n\ni am very happy , are you ?\n\nhello world\n"


@pytest.fixture
def questions_file(tmp_path: Path) -> Path:
    """`questions.csv` in TruthfulQA's form."""
    return write_questions(tmp_path / "questions.csv", QUESTIONS)


def write_questions(path: Path, questions: list[tuple[str, str, list[str], list[str]]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]
        )
        for question, best, correct, incorrect in questions:
            writer.writerow(["x", "y", question, best, "; ".join(correct), "; ".join(incorrect), "z"])
    return path


@pytest.fixture
def comparison(write: Callable[..., Path], questions_file: Path, tmp_path: Path) -> Path:
    """The experiment's file, with all that it names beside it."""
    (tmp_path / "primer.txt").write_text(PRIMER)
    (tmp_path / "texts.txt").write_text(TEXTS)
    return write(COMPARISON, "comparison.yaml")
