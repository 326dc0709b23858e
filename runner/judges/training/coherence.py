"""Coherence judged by the unedited model under test: is this text one that it finds likely, and no loop?

Of a response y_1 … y_n to a question x, as tokens of the model:

- the mean of log p(y_t | x, y_<t) over the tokens that complete no trigram seen before (what a loop repeats
  is likely, and would hide it), and the same over the 8 least likely tokens in a row;
- the share of trigrams that came before, 1 − distinct/all;
- the longest immediate repetition: the largest share of the response that a period of 1 to 24 tokens repeats
  without a break;
- the share of characters that are letters, digits, spaces or common punctuation.

Length is none of them: it would only tell how the corruptions below were made.

A logistic regression on these tells answers that people wrote (the contrasts of the traits that come with
subvene; some are cut off, because a response may be, too) from corruptions of them: words shuffled, loops,
pieces of two answers in turn, words drawn from all answers, and a beginning followed by garbage; half of them
set in after a good beginning. The score is 100·p(written). It is made for ordinary prose, and does not tell
whether a response keeps to the question.
"""

from __future__ import annotations

import random
import string
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from subvene.runner.data.text import by_length, pad, pad_id_of, prompt_ids, quoted_response_ids
from subvene.runner.data.traits import SHIPPED, Contrast, read_trait
from subvene.runner.files.progress import track
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.prefix import SharedPrefix, why_not_shared
from subvene.runner.intervened.scoring import log_normalizer
from subvene.runner.judges.base import Answer, JudgeError, ToldApart
from subvene.runner.judges.scales.zero_to_hundred import Score, told_apart

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WINDOW = 8
_LONGEST_PERIOD = 24
_COMMON = frozenset(".,;:!?'\"()-–—…‘’“”*#%/&$€£" + string.whitespace)
# The features that are log-probabilities come first.
_LIKELIHOODS = 2
_BATCH = 8
_FOLDS = 5
_C = 1.0
#: Answers of each trait that the fit is made on, and the words that one must have to be worth corrupting.
_PER_TRAIT = 5
_LEAST_WORDS = 12


class Worth(ToldApart, total=False):
    """`found`: the share on the right side of 50, of coherent answers and of each kind of corruption."""

    found: dict[str, float]


class ModelCoherence:
    """Fitted on first use; the fit is kept as long as the model.

    Args:
        model: its edits do not act while it is asked.
        examples: coherent answers to learn from; None: `shipped_examples()`.
    """

    def __init__(self, model: IntervenedModel, examples: Sequence[Answer] | None = None) -> None:
        if model.tokenizer is None:
            raise JudgeError("coherence is judged on text, and the model was given without its tokenizer")
        self._model = model
        self._examples = None if examples is None else tuple(examples)

    def scores(self, exchanges: Sequence[Answer]) -> list[Score]:
        """100·p(coherent) of each response, in order; an empty one is 0."""
        fit = self._fit()
        there = [one for one in exchanges if one.answer.strip()]
        found = iter(fit.probability(features(self._model, there)) if there else ())
        return [Score(100 * float(next(found)) if one.answer.strip() else 0.0) for one in exchanges]

    def describe(self) -> Worth:
        """How well answers and corruptions that were held out (five folds by answer) are told apart.

        `found`: the share on the right side of 50, of coherent answers and of each kind of corruption.
        """
        return self._fit().worth

    def _fit(self) -> _Fit:
        examples = shipped_examples() if self._examples is None else self._examples
        fits = _fits.setdefault(self._model.model, {})
        if examples not in fits:
            fits[examples] = _fitted(self._model, examples)
        return fits[examples]


def shipped_examples() -> tuple[Answer, ...]:
    """Answers of the contrasts that come with subvene: five of each trait, of both sides in turn.

    Raises:
        JudgeError: there are none.
    """
    chosen: list[Answer] = []
    for path in sorted(SHIPPED.glob("*.json")):
        chosen += alternating(read_trait(path.stem, SHIPPED).contrasts)
    if not chosen:
        raise JudgeError(f"{SHIPPED}: no trait with `contrasts` to learn from what coherent text is")
    return tuple(chosen)


def alternating(contrasts: Sequence[Contrast]) -> list[Answer]:
    """At most five answers, spread over the contrasts, of either side in turn, that are long enough."""
    chosen = []
    for i, one in enumerate(contrasts[:: max(1, len(contrasts) // _PER_TRAIT)][:_PER_TRAIT]):
        turn = (one.positive, one.negative) if i % 2 == 0 else (one.negative, one.positive)
        long = [answer for answer in turn if len(answer.split()) >= _LEAST_WORDS]
        chosen += [Answer(one.question, answer) for answer in long[:1]]
    return chosen


@dataclass(frozen=True)
class _Fit:
    """A logistic regression on features that are bounded first.

    Attributes:
        low: nothing counts for less than the least that the fit saw.
        high: likewise; of the log-probabilities, which a model's own text has far higher than what people
            write, the median of coherent answers, so that being likely makes up for no loop.
        mean: of the bounded features.
        spread: their standard deviation.
        regression: scikit-learn's.
        worth: what `ModelCoherence.describe` says.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    regression: Any
    worth: Worth

    def probability(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """That a response is coherent, for every row of `features`."""
        z = (np.clip(x, self.low, self.high) - self.mean) / self.spread
        odds = (z * self.regression.coef_[0]).sum(1) + self.regression.intercept_[0]
        return np.asarray(1 / (1 + np.exp(-odds)))


_fits: weakref.WeakKeyDictionary[Any, dict[tuple[Answer, ...], _Fit]] = weakref.WeakKeyDictionary()


def _fitted(m: IntervenedModel, examples: Sequence[Answer]) -> _Fit:
    from sklearn.model_selection import GroupKFold

    if len(examples) < _FOLDS:
        raise JudgeError(f"coherence is learnt from at least {_FOLDS} answers, found {len(examples)}")
    rows = _corpus(examples)
    x = features(m, [one for _, _, one in rows], "learning what is coherent")
    y = np.array([kind == "" for _, kind, _ in rows], dtype=int)
    held_out = np.zeros(len(rows))
    for rest, part in GroupKFold(_FOLDS).split(x, groups=[group for group, _, _ in rows]):
        held_out[part] = _regression(x[rest], y[rest], {"n": 0}).probability(x[part])
    apart = told_apart(list(100 * held_out[y == 1]), list(100 * held_out[y == 0]))
    kinds = sorted({kind for _, kind, _ in rows})
    found = {
        kind or "coherent": float(
            np.mean(
                [(p >= 0.5) == (kind == "") for p, row in zip(held_out, rows, strict=True) if row[1] == kind]
            )
        )
        for kind in kinds
    }
    return _regression(x, y, {**(apart or {"n": 0}), "found": found})


def _regression(x: NDArray[np.float64], y: NDArray[np.int64], worth: Worth) -> _Fit:
    from sklearn.linear_model import LogisticRegression

    low, high = x.min(0), x.max(0)
    high[:_LIKELIHOODS] = np.median(x[y == 1, :_LIKELIHOODS], axis=0)
    bounded = np.clip(x, low, high)
    mean, spread = bounded.mean(0), bounded.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    regression = LogisticRegression(C=_C, class_weight="balanced", max_iter=1000)
    return _Fit(low, high, mean, spread, regression.fit((bounded - mean) / spread, y), worth)


# --- what is coherent, and what is not ---------------------------------------------------------------------


def _corpus(examples: Sequence[Answer]) -> list[tuple[int, str, Answer]]:
    """(group, kind of corruption or "", exchange): each answer, every other one cut off, two corruptions."""
    vocabulary = sorted({word for one in examples for word in one.answer.split()})
    kinds = list(CORRUPTIONS)
    rows: list[tuple[int, str, Answer]] = []
    for i, one in enumerate(examples):
        draw = random.Random(i)
        words = one.answer.split()
        cut = words[: int(len(words) * draw.uniform(0.5, 0.9))] if i % 2 else words
        rows.append((i, "", Answer(one.question, " ".join(cut))))
        # The answer of another question.
        other = examples[(i + len(examples) // 2) % len(examples)].answer.split()
        for j in range(2):
            kind = kinds[(2 * i + j) % len(kinds)]
            good = words[: len(words) // 3] if draw.random() < 0.5 else []
            rest = CORRUPTIONS[kind](words[len(good) :], other, vocabulary, draw)
            rows.append((i, kind, Answer(one.question, " ".join([*good, *rest]))))
    return rows


_Words = list[str]


def _shuffled(words: _Words, other: _Words, vocabulary: _Words, draw: random.Random) -> _Words:
    return draw.sample(words, len(words))


def _looped(words: _Words, other: _Words, vocabulary: _Words, draw: random.Random) -> _Words:
    """A phrase of one to eight words, three times or more, from somewhere in the first half."""
    start = draw.randrange(max(1, len(words) // 2))
    phrase = words[start : start + draw.choice((1, 2, 3, 4, 6, 8))]
    times = max(3, round(draw.choice((0.5, 1, 2)) * len(words) / len(phrase)))
    return [*words[:start], *phrase * times]


def _spliced(words: _Words, other: _Words, vocabulary: _Words, draw: random.Random) -> _Words:
    """Pieces of three to six words of two answers in turn."""
    pieces: _Words = []
    at = 0
    while at < len(words):
        size = draw.randint(3, 6)
        pieces += words[at : at + size] + other[at + size : at + 2 * size]
        at += 2 * size
    return pieces[: len(words)]


def _salad(words: _Words, other: _Words, vocabulary: _Words, draw: random.Random) -> _Words:
    return draw.choices(vocabulary, k=len(words))


def _garbage(words: _Words, other: _Words, vocabulary: _Words, draw: random.Random) -> _Words:
    """The first half, then strings of letters and signs in no language."""
    signs = string.ascii_letters + "{}[]<>|\\^~`_=+@"
    made = ["".join(draw.choices(signs, k=draw.randint(1, 9))) for _ in range(max(4, len(words) // 2))]
    return [*words[: len(words) // 2], *made]


CORRUPTIONS: dict[str, Callable[[_Words, _Words, _Words, random.Random], _Words]] = {
    "shuffled": _shuffled,
    "looped": _looped,
    "spliced": _spliced,
    "salad": _salad,
    "garbage": _garbage,
}
"""By kind: from an answer's words, another answer's, all answers' and a draw to words that make no sense."""


# --- what is seen of a response ----------------------------------------------------------------------------


def features(
    m: IntervenedModel, exchanges: Sequence[Answer], description: str = "judging coherence"
) -> NDArray[np.float64]:
    """The five numbers of this module's docstring, a row for each response; none of them may be empty."""
    pairs = [
        (prompt_ids(m.tokenizer, one.question), quoted_response_ids(m.tokenizer, one.answer))
        for one in exchanges
    ]
    rows = []
    for one, (_, ids), log_p in zip(exchanges, pairs, token_log_probs(m, pairs, description), strict=True):
        new = [value for value, old in zip(log_p, _repeats(ids), strict=True) if not old]
        rows.append(
            [
                float(np.mean(new)),
                _least_likely(new),
                repeated_trigrams(ids),
                longest_repetition(ids),
                sum(c.isalnum() or c in _COMMON for c in one.answer) / len(one.answer),
            ]
        )
    return np.array(rows)


@torch.no_grad()
def token_log_probs(
    m: IntervenedModel, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], description: str
) -> list[list[float]]:
    """Log p(token | what precedes it) of every token of each (prompt, response), by the unedited model.

    A prompt that several responses answer passes through the model once, if its cache can be forked.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    for i, (prompt, _) in enumerate(pairs):
        members.setdefault(tuple(prompt), []).append(i)
    found: list[list[float]] = [[] for _ in pairs]
    with m.disabled():
        shared: list[tuple[tuple[int, ...], list[int]]] = []
        alone: list[tuple[tuple[int, ...], list[int]]] = []
        for prompt, those in members.items():
            forkable = len(those) > 1 and why_not_shared(m, prompt[:-1], [prompt]) is None
            (shared if forkable else alone).append((prompt, those))
        rest = [i for _, those in alone for i in those]
        passes: list[tuple[tuple[int, ...] | None, list[int]]] = [(None, rest)] if rest else []
        for begun, those in track([*passes, *shared], description):
            prefix = None if begun is None else SharedPrefix(m, begun[:-1], len(begun))
            # What the model reads: all but the last token, whose output predicts nothing.
            inputs = {
                i: [*(pairs[i][0] if prefix is None else pairs[i][0][-1:]), *pairs[i][1][:-1]] for i in those
            }
            for places in by_length([len(inputs[i]) for i in those], _BATCH):
                chosen = [those[place] for place in places]
                # Logits only from the first token that predicts: they are the largest tensor here.
                first = min(len(inputs[i]) - len(pairs[i][1]) for i in chosen)
                logits = _logits(m, prefix, [inputs[i] for i in chosen], first)
                for row, i in enumerate(chosen):
                    response = torch.tensor(list(pairs[i][1]), device=logits.device)
                    end = len(inputs[i]) - first
                    said = logits[row, end - len(response) : end]
                    picked = said.gather(1, response.unsqueeze(1)).squeeze(1).cpu().double()
                    found[i] = (picked - log_normalizer(said).cpu()).tolist()
    return found


def _logits(
    m: IntervenedModel, prefix: SharedPrefix | None, rows: Sequence[list[int]], first: int
) -> torch.Tensor:
    """What follows each token of each row, from the slot `first` on; the rows continue the prefix."""
    batch = pad(rows, [0] * len(rows), pad_id_of(m.tokenizer), "right")
    kept = batch.input_ids.shape[1] - first
    mask = batch.attention_mask
    options: dict[str, Any] = {"use_cache": False, "logits_to_keep": kept}
    if prefix is not None:
        mask = torch.cat([mask.new_ones(len(rows), prefix.length), mask], 1)
        options |= {"use_cache": True, "past_key_values": prefix.fork([0] * len(rows))}
    logits: torch.Tensor = m(batch.input_ids, mask, **options).logits
    return logits[:, -kept:]


def _repeats(ids: Sequence[int]) -> list[bool]:
    """Of each token whether it completes a trigram that came before."""
    seen: set[tuple[int, ...]] = set()
    found = []
    for t in range(len(ids)):
        trigram = tuple(ids[t - 2 : t + 1]) if t >= 2 else ()
        found.append(bool(trigram) and trigram in seen)
        seen.add(trigram)
    return found


def repeated_trigrams(ids: Sequence[int]) -> float:
    """The share of trigrams that came before; 0 where there is none."""
    return sum(_repeats(ids)) / max(1, len(ids) - 2)


def longest_repetition(ids: Sequence[int]) -> float:
    """The largest share of tokens that repeat, without a break, the 1 to 24 tokens before them."""
    longest = 0
    for period in range(1, min(_LONGEST_PERIOD, len(ids) - 1) + 1):
        run = 0
        for t in range(period, len(ids)):
            run = run + 1 if ids[t] == ids[t - period] else 0
            # Less than a whole period is a chance meeting.
            if run >= period:
                longest = max(longest, run)
    return longest / max(1, len(ids))


def _least_likely(log_p: Sequence[float]) -> float:
    """The least mean of eight neighbours, or of all if there are fewer."""
    size = min(_WINDOW, len(log_p))
    sums = np.convolve(log_p, np.ones(size), "valid")
    return float(sums.min() / size)
