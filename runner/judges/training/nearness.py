"""How near an answer is to a question's true and false references, by words, letters and vectors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from subvene.runner.judges.base import Answer
from subvene.runner.judges.training.wording import (
    FUNCTION_WORDS,
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

    Vector = NDArray[np.floating[Any]]
    Matrix = NDArray[np.floating[Any]]

_TEMPERATURES = (0.03, 0.1)
_RIDGES = (0.05, 0.3, 1.0)
#: Of a longer answer so many sentences are compared one by one.
MOST_SENTENCES = 3


@dataclass(frozen=True)
class Form:
    """A text as its words, counted in several ways."""

    words: list[str]
    distinct: frozenset[str]
    counts: Counter[Any]
    pairs: Counter[Any]
    letters: Counter[Any]

    @classmethod
    def of(cls, text: str) -> Form:
        """The counts of a text."""
        words = words_of(text)
        plain = f" {normalise(text)} "
        letters = Counter(plain[i : i + 3] for i in range(max(len(plain) - 2, 1)))
        return cls(words, frozenset(words), Counter(words), Counter(pairwise(words)), letters)

    def new_to(self, question: Form) -> Counter[Any]:
        """The content words that the question does not have."""
        return Counter(w for w in self.words if w not in question.distinct and w not in FUNCTION_WORDS)


def _f1(a: Counter[Any], b: Counter[Any]) -> float:
    shared = (a & b).total()
    return 2 * shared / (a.total() + b.total()) if shared else 0.0


def nearness(row: Answer, vectors: Mapping[str, Vector], forms: Mapping[str, Form]) -> list[float]:
    """See the module.

    Args:
        row: an answer whose question has references on both sides, its own left out.
        vectors: unit vectors of question and answer together, of question and each reference together, and
            of each reference and each sentence of the answer alone, closed.
        forms: of the question, the answer and each reference.
    """
    true, false = len(row.correct), len(row.incorrect)
    references = (*row.correct, *row.incorrect)
    said = vectors[together(row.question, row.answer)].astype(float)
    rows = np.stack([vectors[together(row.question, one)] for one in references]).astype(float)
    cosines = rows @ said
    numbers = [*_nearest(cosines, true), *_sides(rows, said, cosines, true)]
    numbers += _alone(row, vectors, references)

    question, answer = forms[row.question], forms[row.answer]
    others = [forms[one] for one in references]
    new = answer.new_to(question)
    for similarities in (
        [_f1(answer.counts, one.counts) for one in others],
        [_f1(answer.letters, one.letters) for one in others],
        [_f1(new, one.new_to(question)) for one in others],
        [_f1(answer.pairs, one.pairs) for one in others],
        [(answer.counts & one.counts).total() / max(len(one.words), 1) for one in others],
    ):
        numbers += _nearest(np.array(similarities), true)
    numbers += _tellingwords_of(answer, others[:true], others[true:])
    return [*numbers, math.log1p(true), math.log1p(false)]


def _alone(row: Answer, vectors: Mapping[str, Vector], references: Sequence[str]) -> list[float]:
    """The same without the question before either, and sentence by sentence."""
    true = len(row.correct)
    rows = np.stack([vectors[closed(one)] for one in references]).astype(float)
    cosines = rows @ vectors[closed(row.answer)].astype(float)
    said = np.stack([vectors[one] for one in sentences(row.answer, MOST_SENTENCES)]).astype(float)
    by_sentence = rows @ said.T
    lean = by_sentence[:true].max(0) - by_sentence[true:].max(0)
    near = by_sentence.max(0)
    return [
        *_nearest(cosines, true),
        float(cosines.max()),
        *(float(lean[0]), float(lean.min()), float(lean.max()), float(lean.mean())),
        *(float(near[0]), float(near.max()), float(near.mean())),
        float(lean[int(near.argmax())]),
        float(len(said)),
    ]


def _nearest(similarities: Vector, true: int) -> list[float]:
    """How near the nearest true references are, how near the false ones, and the difference."""
    sides = similarities[:true], similarities[true:]
    summaries = []
    for side in sides:
        ordered = np.sort(side)[::-1]
        summaries.append([ordered[0], ordered[:2].mean(), ordered[:3].mean(), ordered.mean()])
    numbers = [*summaries[0], *summaries[1], *(a - b for a, b in zip(*summaries, strict=True))]
    for temperature in _TEMPERATURES:
        weights = [np.exp((side - similarities.max()) / temperature) for side in sides]
        # A side that is far away may vanish: the floor keeps its logarithm finite.
        means = [max(float(weight.mean()), 1e-30) for weight in weights]
        numbers.append(float(weights[0].sum() / (weights[0].sum() + weights[1].sum())))
        numbers.append(math.log(means[0]) - math.log(means[1]))
    return numbers


def _sides(rows: Matrix, said: Vector, cosines: Vector, true: int) -> list[float]:
    """On which side the answer lies, by the line between the sides' means and by kernel ridge regression."""
    middle_true, middle_false = rows[:true].mean(0), rows[true:].mean(0)
    line = middle_true - middle_false
    length = max(float(np.linalg.norm(line)), 1e-6)
    along = float((said - (middle_true + middle_false) / 2) @ line)
    false = len(rows) - true
    sign = np.r_[np.full(true, 1 / true), np.full(false, -1 / false)] * len(rows) / 2
    kernel = rows @ rows.T
    ridges = [float(cosines @ np.linalg.solve(kernel + r * np.eye(len(rows)), sign)) for r in _RIDGES]
    return [along / length, along / length**2, length, *ridges]


def _tellingwords_of(answer: Form, true: Sequence[Form], false: Sequence[Form]) -> list[float]:
    """Words that stand in one side's references and not in the other's; who says yes, no and not."""
    in_true = Counter(word for one in true for word in one.distinct)
    in_false = Counter(word for one in false for word in one.distinct)
    n, m = len(true), len(false)
    words = sorted(answer.distinct)  # a set's order changes from run to run, and a sum's last bits with it
    lean = [in_true[word] / n - in_false[word] / m for word in words]
    content = [x for word, x in zip(words, lean, strict=True) if word not in FUNCTION_WORDS]
    odds = [
        math.log((in_true[word] + 0.5) / (n + 1)) - math.log((in_false[word] + 0.5) / (m + 1))
        for word in words
        if in_true[word] or in_false[word]
    ]
    denied = [sum(negations(one.words) > 0 for one in side) / len(side) for side in (true, false)]
    yes, no = (
        sum(polarity(one.words) == sign for one in true) / n
        - sum(polarity(one.words) == sign for one in false) / m
        for sign in (1, -1)
    )
    return [
        sum(lean),
        _mean(lean),
        sum(content),
        _mean(content),
        min(lean, default=0.0),
        max(lean, default=0.0),
        sum(odds),
        _mean(odds),
        *denied,
        (denied[0] - denied[1]) * (1 if negations(answer.words) else -1),
        yes,
        no,
        polarity(answer.words) * (yes - no),
    ]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


#: Seven comparisons of 16 numbers, ten of the answer alone, six of the sides, 14 of the words, two counts.
N_NEARNESS = 7 * 16 + 10 + 6 + 14 + 2
