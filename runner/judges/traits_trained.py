"""Traits judged without a language model that judges: what a trait file's own contrasts look like.

For each trait a logistic regression tells the positive answers of its `contrasts` from the negative ones;
the score is 100·p(positive). It sees the answer's sentence vector, its difference from the question's, and a
few counts of how the answer is worded. Thirty pairs of answers are few: `describe` says what the judge is
worth on questions that it was not fitted on, and on responses that are unlike the contrasts it is worth less.
Coherence is asked of the unedited model under test (`coherence`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from subvene.runner.data.traits import Trait
from subvene.runner.judges.base import JudgeError
from subvene.runner.judges.coherence import ModelCoherence
from subvene.runner.judges.encoder import MINILM, SentenceEncoder, cut_in_words, find_encoder
from subvene.runner.judges.traits import Exchange, Score, TraitJudge
from subvene.runner.judges.traits_scale import told_apart

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from subvene.runner.intervened.model import IntervenedModel
    from subvene.specs.judges import TrainedJudgeSpec

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


class TrainedTraitJudge(TraitJudge):
    """A fit for every trait, made when it is first needed and kept.

    Args:
        spec: must not name a folder: what `subvene judge fit` writes judges truth and information.
        model: the model whose responses are judged; needed for coherence alone.
    """

    def __init__(self, spec: TrainedJudgeSpec, model: IntervenedModel | None) -> None:
        self._spec = spec
        self._cut: set[str] = set()
        self._coherence = None if model is None else ModelCoherence(model)

    def check(self, traits: Sequence[Trait]) -> None:
        """See whether there is an encoder, and something to fit on.

        Raises:
            JudgeError: the encoder is missing, the spec names a folder, or a trait has too few contrasts.
        """
        if self._spec.folder is not None:
            raise JudgeError(
                f"judge: `folder: {self._spec.folder}` holds a judge of truth or information; traits are "
                "judged by their files' `contrasts`, so leave `folder` out"
            )
        find_encoder(MINILM)
        for trait in traits:
            questions = len({one.question for one in trait.contrasts})
            if questions < _FOLDS:
                found = "none" if questions == 0 else f"contrasts on {questions}"
                raise JudgeError(
                    f"trait {trait.name!r}: the trained judge learns from `contrasts` (question, pos, neg) "
                    f"on at least {_FOLDS} questions in the trait file, and there are {found}; add some "
                    "(thirty is good), or use a judge of kind openai or transformers, which asks "
                    "`eval_prompt`"
                )

    def trait(self, trait: Trait, exchanges: Sequence[Exchange]) -> list[Score]:
        """100·p(positive); an empty response has no score, and nothing is known of refusals.

        Raises:
            JudgeError: as `check`.
        """
        fitted = self._fitted(trait)
        there = [one for one in exchanges if one.answer.strip()]
        scores = iter(fitted.probability(there, _encoder()) if there else ())
        if there:
            self._cut |= _encoder().cut & {text for one in there for text in (one.question, one.answer)}
        return [
            Score(100 * float(next(scores)))
            if one.answer.strip()
            else Score(None, False, "the response is empty")
            for one in exchanges
        ]

    def coherence(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """See `coherence.ModelCoherence`.

        Raises:
            JudgeError: no model was given.
        """
        if self._coherence is None:
            raise JudgeError(
                "the trained judge asks the unedited model how likely a response is, and was given no model: "
                "make it with make_trait_judge(spec, folder, model=…), or use a judge of kind openai or "
                "transformers"
            )
        return self._coherence.scores(exchanges)

    def with_model(self, model: IntervenedModel) -> TrainedTraitJudge:
        """The judge whose coherence is what this model finds likely."""
        return TrainedTraitJudge(self._spec, model)

    def usage(self) -> dict[str, Any]:
        """How many of the texts that it has read were cut; empty if none were."""
        return cut_in_words(self._cut)

    def describe(self, traits: Sequence[Trait]) -> dict[str, Any]:
        """`agreement`: cross-validated, five folds by question; `coherence`: the same for its corruptions.

        `coherence` is None where no model was given.
        """
        return {
            "kind": "trained",
            "encoder": {"name": MINILM, "sha256": _encoder_sha256()},
            "fitted": {"on": "contrasts", "sha256": {trait.name: trait.sha256 for trait in traits}},
            "agreement": {
                trait.name: self._fitted(trait).agreement if trait.contrasts else None for trait in traits
            },
            "coherence": None if self._coherence is None else self._coherence.describe(),
        }

    def _fitted(self, trait: Trait) -> _Fit:
        if trait.sha256 not in _fits:
            self.check([trait])
            _fits[trait.sha256] = _fit(trait, _encoder())
        return _fits[trait.sha256]


@cache
def _encoder() -> SentenceEncoder:
    return SentenceEncoder()


@cache
def _encoder_sha256() -> str:
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
    def of(cls, exchanges: Sequence[Exchange], encoder: SentenceEncoder) -> _Seen:
        answers = encoder.encode([one.answer for one in exchanges]).astype(np.float64)
        questions = encoder.encode([one.question for one in exchanges]).astype(np.float64)
        wordings = [_wording(one.answer) for one in exchanges]
        length = np.array([[_LENGTH * words] for words, *_ in wordings])
        counts = np.array([rest for _, *rest in wordings])
        return cls(np.hstack([answers, answers - questions, length]), counts)

    def inputs(self, scale: _Scale, rows: Any = slice(None)) -> NDArray[np.float64]:
        return np.hstack([self.vectors[rows], scale(self.counts[rows])])


@dataclass(frozen=True)
class _Fit:
    """The judge of one trait, and what it is worth."""

    scale: _Scale
    regression: Any
    agreement: dict[str, Any]

    def probability(self, exchanges: Sequence[Exchange], encoder: SentenceEncoder) -> NDArray[np.float64]:
        return _positive(self.regression, _Seen.of(exchanges, encoder).inputs(self.scale))


_fits: dict[str, _Fit] = {}


def _fit(trait: Trait, encoder: SentenceEncoder) -> _Fit:
    from sklearn.model_selection import GroupKFold

    exchanges = [Exchange(c.question, answer) for c in trait.contrasts for answer in (c.positive, c.negative)]
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
    return _Fit(scale, _regression(seen.inputs(scale), label), agreement)


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
