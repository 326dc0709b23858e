"""A score from 0 to 100, read from how likely a language model finds each number.

Chen et al. (2025, arXiv:2507.21509): score = Σ k·p(k) / Σ p(k) over the whole numbers 0 to 100, and no score
if Σ p(k) < 0.25. Two forms, by how the judge's tokenizer spells numbers:

- *whole numbers*: p(k) is the probability of the tokens that spell k (`57`, ` 57`) at the beginning of the
  reply, as published;
- *digits*: where a tokenizer splits numbers, p(k) is the probability that the reply begins with the string k
  and goes on with anything but a digit: p(5)·p(7 | 5)·(1 − Σ_d p(d | 57)), the digits followed one by one.

What follows a beginning is asked of whoever knows: a local model (`traits_transformers`) or a server
(`traits_openai`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from subvene.runner.data.traits import Trait
from subvene.runner.judges.traits import Exchange, Score, TraitJudge

#: The least probability of all numbers together that gives a score.
MASS = 0.25
HIGHEST = 100
_NUMERALS = frozenset(map(str, range(HIGHEST + 1)))
_REFUSAL = "refusal"
# A space, as texts, sentencepiece and byte-level vocabularies write it.
_SPACES = " ▁Ġ"
_AROUND = " \t\r\n▁ĠĊ*\"'`“”.:"
_WRITTEN = re.compile(r"[\s*\"'`“]*(?P<number>[0-9]+)(?!\.?[0-9])")
_SHOWN = 5
# Of a refusal in one token; `r` alone begins too much.
_LEAST_LETTERS = 2

#: Tokens with their probabilities; those that are not there count as 0.
Top = Sequence[tuple[str, float]]
#: (which response, the tokens of the reply so far) → what may come next.
Following = Callable[[list[tuple[int, tuple[str, ...]]]], list[Top]]


@dataclass
class Distribution:
    """What a judge's reply may say.

    Attributes:
        numbers: by number 0 to 100 its probability.
        refusal: the probability that the reply begins as REFUSAL does.
        likeliest: the likeliest beginnings, for messages.
    """

    numbers: dict[int, float] = field(default_factory=dict)
    refusal: float = 0.0
    likeliest: tuple[str, ...] = ()

    def score(self, *, refused: bool | None = None) -> Score:
        """Σ k·p(k) / Σ p(k); no value if Σ p(k) < 0.25.

        Args:
            refused: whether the reply says REFUSAL; None: whether that is likelier than all numbers together.
        """
        mass = math.fsum(self.numbers.values())
        refused = self.refusal > mass if refused is None else refused
        if mass >= MASS:
            return Score(math.fsum(k * p for k, p in self.numbers.items()) / mass, refused)
        if refused:
            return Score(None, True, "the judge says that the response is a refusal")
        begins = f"; it begins with {', '.join(map(repr, self.likeliest))}" if self.likeliest else ""
        return Score(
            None,
            False,
            f"the numbers 0 to 100 have {mass:.3g} of the probability of the judge's reply, less than "
            f"{MASS}{begins}",
        )


def number(token: str) -> int | None:
    """The whole number 0 to 100 that a token spells: `57` and ` 57`, but not `057`, `5.`, `-3`, `101`."""
    spelled = token.lstrip(_SPACES)
    return int(spelled) if spelled in _NUMERALS else None


def begins_refusal(token: str) -> bool:
    """Whether a reply that begins with this token may say REFUSAL, in whatever case."""
    said = token.strip(_AROUND).lower()
    return len(said) >= _LEAST_LETTERS and (_REFUSAL.startswith(said) or said.startswith(_REFUSAL))


def says_refusal(text: str) -> bool:
    """Whether the beginning of a reply is REFUSAL, in whatever case."""
    return text.strip(_AROUND).lower().startswith(_REFUSAL)


def splits_numbers(tokens: Iterable[str]) -> bool:
    """Whether numbers among these tokens have one digit, all of them, and there is one."""
    digits = [len(token.lstrip(_SPACES)) for token in tokens if number(token) is not None]
    return bool(digits) and max(digits) == 1


def whole_numbers(top: Top) -> Distribution:
    """The distribution where numbers are tokens: of the first token alone."""
    found = Distribution(likeliest=_likeliest(top))
    for token, probability in top:
        k = number(token)
        if k is not None:
            found.numbers[k] = found.numbers.get(k, 0.0) + probability
        elif begins_refusal(token):
            found.refusal += probability
    return found


def digit_by_digit(n: int, following: Following, *, floor: float, ends: bool) -> list[Distribution]:
    """The distributions of `n` replies where numbers are split, asked level by level.

    Tokens of several digits and a space of its own before the number are followed like any others, so this is
    the probability of the strings however they are tokenised.

    Args:
        n: how many replies.
        following: what may come next; asked for all replies at once, for one token more each time.
        floor: beginnings that are less likely are not followed, and their numbers count as 0.
        ends: ask what follows 11 to 99 and 100, too. Otherwise these are taken to be complete.
    """
    found = [Distribution() for _ in range(n)]
    front: list[tuple[int, tuple[str, ...], str, float]] = [(i, (), "", 1.0) for i in range(n)]
    while front:
        tops = following([(i, path) for i, path, _, _ in front])
        grown: list[tuple[int, tuple[str, ...], str, float]] = []
        for (i, path, spelled, p), top in zip(front, tops, strict=True):
            one = found[i]
            if not path:
                one.likeliest = _likeliest(top)
            if spelled:
                goes_on = math.fsum(q for token, q in top if token[:1] in _DIGITS)
                _add(one, spelled, p * max(0.0, 1.0 - goes_on))
            else:
                one.refusal += p * math.fsum(q for token, q in top if begins_refusal(token))
            for token, q in top:
                longer = _longer(spelled, token, first=not path)
                if longer is None or not p * q >= floor:
                    continue
                if not ends and len(longer) > 1 and longer != "10":
                    _add(one, longer, p * q)
                else:
                    grown.append((i, (*path, token), longer, p * q))
        front = grown
    return found


_DIGITS = tuple("0123456789")


def _longer(spelled: str, token: str, *, first: bool) -> str | None:
    """What is spelled after one token more; None if no number from 0 to 100 begins so."""
    if first:
        # Before the number there may be a space, alone or as the beginning of the token.
        token = token.lstrip(_SPACES)
        if not token:
            return ""
    longer = spelled + token
    return longer if token and longer in _NUMERALS else None


def _add(one: Distribution, spelled: str, probability: float) -> None:
    k = int(spelled)
    one.numbers[k] = one.numbers.get(k, 0.0) + probability


def _likeliest(top: Top) -> tuple[str, ...]:
    return tuple(token for token, _ in sorted(top, key=lambda pair: -pair[1])[:_SHOWN])


def written_score(text: str) -> Score:
    """The score where a server gives no log-probabilities: the number that the reply begins with."""
    if says_refusal(text):
        return Score(None, True, "the judge says that the response is a refusal")
    match = _WRITTEN.match(text)
    k = None if match is None else number(match["number"])
    if k is None:
        return Score(None, False, f"the reply begins with no whole number from 0 to 100: {text[:60]!r}")
    return Score(float(k))


def as_completion(prompt: str) -> str:
    """What a judge without a chat template continues with a number.

    The line at the end holds no space, which some tokenizers would make part of the number; the line at the
    beginning is one that all prompts share, whatever the trait's own begin with.
    """
    return f"Task: rate a text.\n\n{prompt.strip()}\n\nRating:\n"


def agreement(judge: TraitJudge, trait: Trait) -> dict[str, Any] | None:
    """How well a judge that has not seen them tells a trait's contrasts apart.

    Returns:
        `auc`: the share of (positive, negative) pairs of answers whose positive one scores higher (ties
        half); `accuracy`: the share of answers on the right side of 50; `n`: answers with a score; `missing`,
        where there are any: answers to which the judge gave no usable reply. None if the trait has no
        contrasts, or a side has no score.
    """
    if not trait.contrasts:
        return None
    exchanges = [
        Exchange(one.question, answer) for one in trait.contrasts for answer in (one.positive, one.negative)
    ]
    scores = judge.trait(trait, exchanges)
    values = [one.value for one in scores]
    found = told_apart(values[::2], values[1::2])
    missing = sum(one.missing for one in scores)
    return {**(found or {}), "missing": missing} if missing else found


def told_apart(positive: Sequence[float | None], negative: Sequence[float | None]) -> dict[str, Any] | None:
    """`agreement` of scores from 0 to 100."""
    above = np.array([value for value in positive if value is not None])
    below = np.array([value for value in negative if value is not None])
    if not len(above) or not len(below):
        return None
    difference = above[:, None] - below[None, :]
    right = int((above >= 50).sum() + (below < 50).sum())
    n = len(above) + len(below)
    return {
        "auc": float(((difference > 0) + 0.5 * (difference == 0)).mean()),
        "accuracy": right / n,
        "n": n,
    }
