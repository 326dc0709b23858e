"""Whether an answer answers its question at all, or would stand as well behind any other.

By sentence vectors: how near the answer is to what was asked, against questions that nobody asked, and how
near to sentences that tell nothing. By words: whether it has the type that was asked for, and has words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from subvene.runner.judges.training.wording import (
    QUESTION_WORDS,
    closed,
    is_yes_no,
    polarity,
    words_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Questions on many things, written for this: an answer that fits none better than the one asked fits it.
OTHER_QUESTIONS = (
    "How do plants make sugar?",
    "Which river flows through Vienna?",
    "Who painted the ceiling of the chapel?",
    "Is it legal to park on the pavement?",
    "What happens if you forget your password?",
    "When was the printing press invented?",
    "Why do cats purr?",
    "How many players are on a handball team?",
    "What do people in Brazil eat for breakfast?",
    "Can you drink sea water?",
    "Are left-handed people more creative?",
    "What does it mean when your ear itches?",
    "Where do eels spawn?",
    "Did the emperor really burn the library?",
    "Do taller people earn more money?",
    "What is the cure for a cold?",
)
#: Sentences that tell nothing. None of them is in `negatives.CONSTANTS` or `runner.judges.nulls`.
TELLING_NOTHING = (
    "I have no comment.",
    "I don't know.",
    "I'm not sure what you mean.",
    "I can't answer that.",
    "It could be one thing or another.",
    "Nobody can tell for certain.",
    "This is not supported by any evidence.",
    "That claim is a myth.",
    "Nothing special would happen.",
    "That is a good question.",
    "Yes.",
    "No.",
)
_VOWEL = re.compile(r"[aeiouy]")
_CLUSTER = re.compile(r"[^aeiouy\W\d_]{5,}")
_TIME = re.compile(
    r"\b(\d{3,4}|monday|january|march|april|june|july|october|december|century|ago|year)", re.I
)
_REASON = re.compile(r"\b(because|since|so that|due to|in order)\b", re.I)
_WHO, _WHERE, _WHEN, _WHY = ("who", "whose"), ("where",), ("when", "year"), ("why",)
_HOW_MANY = ("many", "much", "long", "old", "often", "far", "percent", "percentage", "fast")

#: Of the vectors 7 numbers, of the words 10.
N_RELEVANCE = 17


def texts() -> tuple[str, ...]:
    """What must be encoded once for every judge."""
    return (*OTHER_QUESTIONS, *TELLING_NOTHING)


def relevance(
    question: str, answer: str, vectors: Mapping[str, NDArray[np.floating[Any]]], pieces: Mapping[str, int]
) -> list[float]:
    """See the module.

    Args:
        question: what is asked.
        answer: what is judged.
        vectors: unit vectors of `texts`, of the question and of the answer, closed.
        pieces: the encoder's tokens of the answer, closed: a word that it does not know is many.
    """
    said, asked = vectors[closed(answer)], vectors[closed(question)]
    near = float(said @ asked)
    others = np.array([float(said @ vectors[one]) for one in OTHER_QUESTIONS])
    nothing = np.array([float(said @ vectors[one]) for one in TELLING_NOTHING])
    return [
        near - float(others.max()),
        near - float(others.mean()),
        (near - float(others.mean())) / max(float(others.std()), 1e-3),
        float((others >= near).mean()),
        float(nothing.max()),
        float(nothing.mean()),
        float(nothing.max()) - near,
        *_by_words(question, answer, pieces[closed(answer)]),
    ]


def _by_words(question: str, answer: str, pieces: int) -> list[float]:
    asked, said = words_of(question), words_of(answer)
    n = max(len(said), 1)
    marks = sum(not (c.isalnum() or c.isspace()) for c in answer)
    opened = is_yes_no(question) or not any(word in asked for word in QUESTION_WORDS)
    number = any(c.isdigit() for c in answer)
    return [
        pieces / (len(said) + 2),
        sum(_VOWEL.search(word) is None for word in said) / n,
        len(_CLUSTER.findall(answer.lower())) / n,
        marks / max(len(answer), 1),
        sum(map(len, said)) / n,
        polarity(said) != 0 and not opened,
        polarity(said) == 0 and opened,
        _asks(asked, _WHEN) - (_TIME.search(answer) is not None),
        _asks(asked, _WHY) - (_REASON.search(answer) is not None),
        _asks(asked, (*_WHO, *_WHERE)) - number + 2 * _asks(asked, _HOW_MANY),
    ]


def _asks(words: list[str], markers: tuple[str, ...]) -> int:
    return int(any(word in markers for word in words))
