"""Traits judged without a language model that judges: what a trait file's own contrasts look like.

For each trait a logistic regression tells the positive answers of its `contrasts` from the negative ones;
the score is 100·p(positive). It sees the answer's sentence vector, its difference from the question's, and
a few counts of how the answer is worded. Thirty pairs of answers are few: `agreement` says what a fit is
worth on questions that it was not made on, and on responses that are unlike the contrasts it is worth less.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from subvene.runner.data.traits import Trait
from subvene.runner.judges.base import Answer, JudgeError, ToldApart
from subvene.runner.judges.encoder import SentenceEncoder
from subvene.runner.judges.scales.zero_to_hundred import told_apart

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FOLDS = 5
_C = 10.0
# So that a standard deviation of a count weighs a tenth of a sentence vector's length, and no response lies
# further out than the contrasts do.
_WEIGHT, _FURTHEST = 0.1, 2.0
# Length is in units of its own, not of its spread: where the contrasts are equally long, a chance difference
# of two words must not count, and a model's responses are longer than any of them.
_LENGTH = 0.2
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_CONTRACTION = re.compile(r"[^\W_]['’](?:s|t|re|ve|ll|d|m)\b", re.IGNORECASE)
_ME = frozenset(("i", "me", "my", "mine", "i'm", "i'd", "i've", "i'll"))
_YOU = frozenset(("you", "your", "yours", "you're", "you'd", "you've", "you'll"))


def check(trait: Trait) -> None:
    """See whether there is something to fit on.

    Raises:
        JudgeError: the trait has too few contrasts.
    """
    questions = len({one.question for one in trait.contrasts})
    if questions < _FOLDS:
        found = "none" if questions == 0 else f"contrasts on {questions}"
        raise JudgeError(
            f"trait {trait.name!r}: the trained judge learns from `contrasts` (question, pos, neg) "
            f"on at least {_FOLDS} questions in the trait file, and there are {found}; add some "
            "(thirty is good), or use a judge of kind openai or transformers, which asks "
            "`eval_prompt`"
        )


def fitted(trait: Trait) -> Fit:
    """The fit of a trait, made once.

    Raises:
        JudgeError: as `check`.
    """
    if trait.sha256 not in _fits:
        check(trait)
        _fits[trait.sha256] = _fit(trait, _encoder())
    return _fits[trait.sha256]


def cut(answers: Sequence[Answer]) -> set[str]:
    """Which of the texts of answers that were judged the encoder cut."""
    if not answers:
        return set()
    return _encoder().cut & {text for one in answers for text in (one.question, one.answer)}


@cache
def _encoder() -> SentenceEncoder:
    return SentenceEncoder()


@cache
def encoder_sha256() -> str:
    """Of the weights of the encoder that the fits see answers by."""
    return _encoder().sha256()


@dataclass(frozen=True)
class _Scale:
    """How counts are put beside sentence vectors: mean and spread over the answers of a fit."""

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]

    @classmethod
    def of(cls, counts: NDArray[np.float64]) -> _Scale:
        spread = counts.std(0)
        # What is the same in all of them says nothing, whatever it is elsewhere.
        return cls(counts.mean(0), np.where(spread > 0, spread, np.inf))

    def __call__(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        return _WEIGHT * np.clip((counts - self.mean) / self.spread, -_FURTHEST, _FURTHEST)


@dataclass(frozen=True)
class _Seen:
    """What the judge sees of answers, a row each: vectors and length, and counts yet to be scaled."""

    vectors: NDArray[np.float64]
    counts: NDArray[np.float64]

    @classmethod
    def of(cls, exchanges: Sequence[Answer], encoder: SentenceEncoder) -> _Seen:
        answers = encoder.encode([one.answer for one in exchanges]).astype(np.float64)
        questions = encoder.encode([one.question for one in exchanges]).astype(np.float64)
        wordings = [_wording(one.answer) for one in exchanges]
        length = np.array([[_LENGTH * words] for words, *_ in wordings])
        counts = np.array([rest for _, *rest in wordings])
        return cls(np.hstack([answers, answers - questions, length]), counts)

    def inputs(self, scale: _Scale, rows: Any = slice(None)) -> NDArray[np.float64]:
        return np.hstack([self.vectors[rows], scale(self.counts[rows])])


@dataclass(frozen=True)
class Fit:
    """The judge of one trait, and what it is worth."""

    scale: _Scale
    regression: Any
    agreement: ToldApart

    def probability(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        """That each answer is one of the positive side."""
        return _positive(self.regression, _Seen.of(answers, _encoder()).inputs(self.scale))


_fits: dict[str, Fit] = {}


def _fit(trait: Trait, encoder: SentenceEncoder) -> Fit:
    from sklearn.model_selection import GroupKFold

    exchanges = [Answer(c.question, answer) for c in trait.contrasts for answer in (c.positive, c.negative)]
    label = np.tile([1, 0], len(trait.contrasts))
    seen = _Seen.of(exchanges, encoder)
    held_out = np.zeros(len(label))
    groups = [one.question for one in exchanges]
    for rest, part in GroupKFold(_FOLDS).split(label, groups=groups):
        scale = _Scale.of(seen.counts[rest])
        regression = _regression(seen.inputs(scale, rest), label[rest])
        held_out[part] = _positive(regression, seen.inputs(scale, part))
    agreement = told_apart(list(100 * held_out[label == 1]), list(100 * held_out[label == 0]))
    if agreement is None:
        raise JudgeError(f"trait {trait.name!r}: its contrasts have one side only")
    scale = _Scale.of(seen.counts)
    return Fit(scale, _regression(seen.inputs(scale), label), agreement)


def _regression(x: NDArray[np.float64], y: NDArray[np.int64]) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=_C, max_iter=1000).fit(x, y)


def _positive(regression: Any, x: NDArray[np.float64]) -> NDArray[np.float64]:
    # Row by row, so that the last bits do not depend on what else is judged.
    odds = np.array([row @ regression.coef_[0] for row in x]) + regression.intercept_[0]
    return np.asarray(1 / (1 + np.exp(-odds)))


def _wording(text: str) -> list[float]:
    """Log of the number of words; by word: letters, contractions, `!`, commas, first and second person."""
    words = [word.lower().replace("’", "'") for word in _WORD.findall(text)]
    n = max(1, len(words))
    return [
        float(np.log1p(len(words))),
        sum(map(len, words)) / n,
        len(_CONTRACTION.findall(text)) / n,
        text.count("!") / n,
        text.count(",") / n,
        sum(word in _ME for word in words) / n,
        sum(word in _YOU for word in words) / n,
    ]
