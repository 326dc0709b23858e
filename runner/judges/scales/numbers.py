"""Reading a score from 0 to 100 from how likely a language model finds each number.

Chen et al. (2025, arXiv:2507.21509): score = Σ k·p(k) / Σ p(k) over the whole numbers 0 to 100, and no score
if Σ p(k) < 0.25. Two forms, by how the judge's tokenizer spells numbers:

- *whole numbers*: p(k) is the probability of the tokens that spell k (`57`, ` 57`) at the beginning of the
  reply, as published;
- *digits*: where a tokenizer splits numbers, p(k) is the probability that the reply begins with the string k
  and goes on with anything but a digit: p(5)·p(7 | 5)·(1 − Σ_d p(d | 57)), the digits followed one by one.

What follows a beginning is asked of whoever knows: a local model (`local.numerals`) or a server
(`server.digits`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from subvene.runner.judges.scales.zero_to_hundred import HIGHEST, Score

#: The least probability of all numbers together that gives a score.
MASS = 0.25
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
