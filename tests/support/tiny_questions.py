"""Twelve questions in TruthfulQA's form, in the words that the tiny models know."""

from __future__ import annotations

import csv
from pathlib import Path

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
PRIMER = "Q: how are you\nA: i am good\n\nQ: is it rain\nA: it is not\n"
TEXTS = "the sun is good and the rain is bad\n\ni am very happy , are you ?\n\nhello world\n"


def write_questions(path: Path, questions: list[tuple[str, str, list[str], list[str]]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]
        )
        for question, best, correct, incorrect in questions:
            writer.writerow(["x", "y", question, best, "; ".join(correct), "; ".join(incorrect), "z"])
    return path
