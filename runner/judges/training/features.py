"""What the trained judge sees of an answer: how it is worded, and what lies near it.

Two sets of numbers. The *text* set needs the question and the answer alone. The *reference* set compares
the answer with the question's true and false reference answers, by words and by sentence vectors, and exists
only where there is at least one of each. A reference that says word for word what the answer says is left
out, when the judge is fitted and when it judges: many labelled answers are references themselves, and would
otherwise be recognised instead of judged.

A change to anything here changes what a fitted judge means: raise `FEATURES_VERSION`, and fit again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from subvene.runner.judges.base import Answer
from subvene.runner.judges.training import relevance
from subvene.runner.judges.training.nearness import MOST_SENTENCES, N_NEARNESS, Form, nearness
from subvene.runner.judges.training.wording import (
    FUNCTION_WORDS,
    HEDGES,
    QUESTION_WORDS,
    YES_NO_OPENERS,
    closed,
    negations,
    normalise,
    polarity,
    sentences,
    together,
    words_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.floating[Any]]

FEATURES_VERSION = 2

_NO_COMMENT = "i have no comment"
_PHRASES = (
    "no comment",
    "i don't know",
    "i do not know",
    "don't know",
    "not sure",
    "i am not",
    "i have no",
    "no one knows",
    "nobody knows",
    "it depends",
    "there is no",
    "no,",
    "yes,",
    "i'm",
    "i am ",
    "i ",
)


class Encoder(Protocol):
    """Texts in, one unit vector each out."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """A row for every text."""

    def pieces(self, texts: Sequence[str]) -> list[int]:
        """How many tokens every text is."""


@dataclass(frozen=True)
class Features:
    """What is known of some answers.

    Attributes:
        text: `[n, …]`, from question and answer.
        answer: `[n, width]`, the answers' sentence vectors.
        both: `[n, width]`, the vectors of question and answer together.
        references: `[n, …]`; rows without references are zero.
        referenced: which rows have references.
    """

    text: Matrix
    answer: Matrix
    both: Matrix
    references: Matrix
    referenced: NDArray[np.bool_]

    def __getitem__(self, rows: Any) -> Features:
        """Some of the rows."""
        parts = (self.text, self.answer, self.both, self.references, self.referenced)
        return Features(*(part[rows] for part in parts))


def without_own(answer: Answer) -> Answer:
    """The answer with those references left out that say word for word what it says, and the general one.

    "I have no comment." may or may not stand among the true references; it says nothing of the question.
    """
    own = {normalise(answer.answer), _NO_COMMENT}

    def rest(references: Iterable[str]) -> tuple[str, ...]:
        distinct = {normalise(one): one for one in sorted(references)}
        return tuple(distinct[key] for key in sorted(distinct) if key not in own and key)

    return Answer(answer.question, answer.answer, rest(answer.correct), rest(answer.incorrect))


def extract(answers: Sequence[Answer], encoder: Encoder) -> Features:
    """Everything that the trained judge knows of the answers; a row does not depend on the other rows."""
    rows = [without_own(answer) for answer in answers]
    texts = list(dict.fromkeys([*relevance.texts(), *(text for row in rows for text in _texts(row))]))
    vectors = dict(zip(texts, encoder.encode(texts), strict=True))
    said_texts = [closed(row.answer) for row in rows]
    pieces = dict(zip(said_texts, encoder.pieces(said_texts), strict=True))
    width = len(next(iter(vectors.values()))) if vectors else 0
    text = np.zeros((len(rows), N_TEXT))
    references = np.zeros((len(rows), N_REFERENCES))
    answer, both = np.zeros((len(rows), width)), np.zeros((len(rows), width))
    referenced = np.zeros(len(rows), dtype=bool)
    forms: dict[str, Form] = {}
    for i, row in enumerate(rows):
        asked, said = vectors[closed(row.question)], vectors[closed(row.answer)]
        joined = vectors[together(row.question, row.answer)]
        answer[i], both[i] = said, joined
        text[i] = [
            *_wording(row.question, row.answer),
            *(float(said @ asked), float(said @ joined), float(asked @ joined)),
            *relevance.relevance(row.question, row.answer, vectors, pieces),
        ]
        referenced[i] = bool(row.correct and row.incorrect)
        if referenced[i]:
            for one in (row.question, row.answer, *row.correct, *row.incorrect):
                if one not in forms:
                    forms[one] = Form.of(one)
            references[i] = nearness(row, vectors, forms)
    return Features(text, answer, both, references, referenced)


def _texts(row: Answer) -> Iterable[str]:
    yield closed(row.question)
    yield closed(row.answer)
    yield together(row.question, row.answer)
    if row.correct and row.incorrect:
        for reference in (*row.correct, *row.incorrect):
            yield together(row.question, reference)
            yield closed(reference)
        yield from sentences(row.answer, MOST_SENTENCES)


def _wording(question: str, answer: str) -> list[float]:
    asked, said = words_of(question), words_of(answer)
    lower, stripped = answer.lower().replace("’", "'"), answer.rstrip()
    content = [word for word in said if word not in FUNCTION_WORDS]
    asked_content = [word for word in asked if word not in FUNCTION_WORDS]
    known, distinct = set(asked), set(said)
    new = [word for word in content if word not in known]
    triples = list(zip(said, said[1:], said[2:], strict=False))
    denied = negations(said)
    return [
        math.log1p(len(said)),
        math.log1p(len(answer)),
        min(len(said), 5) / 5,
        stripped.endswith((".", "!", "?")),
        stripped.endswith("?"),
        answer.count("."),
        answer.count(","),
        len(distinct) / max(len(said), 1),
        len(set(triples)) / max(len(triples), 1),
        sum(word in known for word in content) / max(len(content), 1),
        sum(word in distinct for word in asked_content) / max(len(asked_content), 1),
        len(new),
        not new,
        denied,
        denied > 0,
        negations(asked),
        sum(word in HEDGES for word in said),
        polarity(said) == 1,
        polarity(said) == -1,
        any(character.isdigit() for character in answer),
        sum(word[:1].isupper() for word in answer.split()[1:]),
        normalise(answer) == normalise(question),
        math.log1p(len(asked)),
        bool(asked) and asked[0] in YES_NO_OPENERS,
        re.match(r"(i|i'm|my)\b", lower) is not None,
        *(phrase in lower for phrase in _PHRASES),
        *(word in asked[:3] for word in QUESTION_WORDS),
    ]


#: How many numbers either set has: 25 of the wording, the phrases, the question words, three cosines.
N_TEXT = 25 + len(_PHRASES) + len(QUESTION_WORDS) + 3 + relevance.N_RELEVANCE
N_REFERENCES = N_NEARNESS
