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
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from subvene.runner.judges.base import Answer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.floating[Any]]
    Matrix = NDArray[np.floating[Any]]

FEATURES_VERSION = 1

_NO_COMMENT = "i have no comment"
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


_NEGATIONS = _listed(
    "no not never none nothing nobody neither nor cannot nowhere without false myth incorrect wrong untrue"
)
_HEDGES = _listed(
    """may might could some sometimes depends depending possibly perhaps usually often varies vary many
    unclear unknown likely probably generally most typically believed evidence proof scientific studies
    research"""
)
_FUNCTION_WORDS = _listed(
    """the a an of in on at to for and or is are was were be been it its that this these those with by from as
    do does did you your i they them their he his she her we our what which who when where why how if can will
    would"""
)
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
# A question that opens so is answered with yes or no.
_YES_NO_OPENERS = _listed("is are do does did can will was were has have should could")
_QUESTION_WORDS = ("what", "who", "where", "when", "why", "how", "which")
_TEMPERATURES = (0.03, 0.1)
_RIDGES = (0.05, 0.3, 1.0)


class Encoder(Protocol):
    """Texts in, one unit vector each out."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """A row for every text."""


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


def normalise(text: str) -> str:
    """A text's words alone: what two answers share that say the same thing word for word."""
    return " ".join(re.findall(r"[a-z0-9]+", re.sub(r"['’]", "", text.lower())))


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
    texts = [text for row in rows for text in _texts(row)]
    vectors = dict(zip(texts, encoder.encode(texts), strict=True))
    width = len(next(iter(vectors.values()))) if vectors else 0
    text = np.zeros((len(rows), N_TEXT))
    references = np.zeros((len(rows), N_REFERENCES))
    answer, both = np.zeros((len(rows), width)), np.zeros((len(rows), width))
    referenced = np.zeros(len(rows), dtype=bool)
    forms: dict[str, _Form] = {}
    for i, row in enumerate(rows):
        asked, said = vectors[_closed(row.question)], vectors[_closed(row.answer)]
        together = vectors[_together(row.question, row.answer)]
        answer[i], both[i] = said, together
        cosines = [float(said @ asked), float(said @ together), float(asked @ together)]
        text[i] = [*_wording(row.question, row.answer), *cosines]
        referenced[i] = bool(row.correct and row.incorrect)
        if referenced[i]:
            for one in (row.question, row.answer, *row.correct, *row.incorrect):
                if one not in forms:
                    forms[one] = _Form.of(one)
            references[i] = _compared(row, vectors, forms)
    return Features(text, answer, both, references, referenced)


def _texts(row: Answer) -> Iterable[str]:
    yield _closed(row.question)
    yield _closed(row.answer)
    yield _together(row.question, row.answer)
    if row.correct and row.incorrect:
        for reference in (*row.correct, *row.incorrect):
            yield _together(row.question, reference)


def _closed(text: str) -> str:
    """With a period, so that it makes no difference which of two texts was written with one."""
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _together(question: str, answer: str) -> str:
    return f"{question.strip()} {_closed(answer)}"


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower().replace("’", "'"))


def _negations(words: Sequence[str]) -> int:
    return sum(word in _NEGATIONS or word.endswith("n't") for word in words)


def _polarity(words: Sequence[str]) -> int:
    """1 for an answer that opens with yes, −1 with no."""
    return {"yes": 1, "no": -1, "nope": -1}.get(words[0], 0) if words else 0


def _wording(question: str, answer: str) -> list[float]:
    asked, said = _words(question), _words(answer)
    lower, stripped = answer.lower().replace("’", "'"), answer.rstrip()
    content = [word for word in said if word not in _FUNCTION_WORDS]
    asked_content = [word for word in asked if word not in _FUNCTION_WORDS]
    known, distinct = set(asked), set(said)
    new = [word for word in content if word not in known]
    triples = list(zip(said, said[1:], said[2:], strict=False))
    negations = _negations(said)
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
        negations,
        negations > 0,
        _negations(asked),
        sum(word in _HEDGES for word in said),
        _polarity(said) == 1,
        _polarity(said) == -1,
        any(character.isdigit() for character in answer),
        sum(word[:1].isupper() for word in answer.split()[1:]),
        normalise(answer) == normalise(question),
        math.log1p(len(asked)),
        bool(asked) and asked[0] in _YES_NO_OPENERS,
        re.match(r"(i|i'm|my)\b", lower) is not None,
        *(phrase in lower for phrase in _PHRASES),
        *(word in asked[:3] for word in _QUESTION_WORDS),
    ]


@dataclass(frozen=True)
class _Form:
    """A text as its words, counted in several ways."""

    words: list[str]
    distinct: frozenset[str]
    counts: Counter[Any]
    pairs: Counter[Any]
    letters: Counter[Any]

    @classmethod
    def of(cls, text: str) -> _Form:
        words = _words(text)
        plain = f" {normalise(text)} "
        letters = Counter(plain[i : i + 3] for i in range(max(len(plain) - 2, 1)))
        return cls(words, frozenset(words), Counter(words), Counter(pairwise(words)), letters)

    def new_to(self, question: _Form) -> Counter[Any]:
        """The content words that the question does not have."""
        return Counter(w for w in self.words if w not in question.distinct and w not in _FUNCTION_WORDS)


def _f1(a: Counter[Any], b: Counter[Any]) -> float:
    shared = (a & b).total()
    return 2 * shared / (a.total() + b.total()) if shared else 0.0


def _compared(
    row: Answer, vectors: Mapping[str, NDArray[np.float32]], forms: dict[str, _Form]
) -> list[float]:
    true, false = len(row.correct), len(row.incorrect)
    references = (*row.correct, *row.incorrect)
    said = vectors[_together(row.question, row.answer)].astype(float)
    rows = np.stack([vectors[_together(row.question, one)] for one in references]).astype(float)
    cosines = rows @ said
    numbers = [*_nearest(cosines, true), *_sides(rows, said, cosines, true)]

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
    numbers += _telling_words(answer, others[:true], others[true:])
    return [*numbers, math.log1p(true), math.log1p(false)]


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


def _telling_words(answer: _Form, true: Sequence[_Form], false: Sequence[_Form]) -> list[float]:
    """Words that stand in one side's references and not in the other's; who says yes, no and not."""
    in_true = Counter(word for one in true for word in one.distinct)
    in_false = Counter(word for one in false for word in one.distinct)
    n, m = len(true), len(false)
    words = sorted(answer.distinct)  # a set's order changes from run to run, and a sum's last bits with it
    lean = [in_true[word] / n - in_false[word] / m for word in words]
    content = [x for word, x in zip(words, lean, strict=True) if word not in _FUNCTION_WORDS]
    odds = [
        math.log((in_true[word] + 0.5) / (n + 1)) - math.log((in_false[word] + 0.5) / (m + 1))
        for word in words
        if in_true[word] or in_false[word]
    ]
    denied = [sum(_negations(one.words) > 0 for one in side) / len(side) for side in (true, false)]
    yes, no = (
        sum(_polarity(one.words) == sign for one in true) / n
        - sum(_polarity(one.words) == sign for one in false) / m
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
        (denied[0] - denied[1]) * (1 if _negations(answer.words) else -1),
        yes,
        no,
        _polarity(answer.words) * (yes - no),
    ]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


#: How many numbers either set has: 25 of the wording, the phrases, the question words, three cosines; six
#: comparisons of 16 numbers, six of the sides, 14 of the words, two counts.
N_TEXT = 25 + len(_PHRASES) + len(_QUESTION_WORDS) + 3
N_REFERENCES = 6 * 16 + 6 + 14 + 2
