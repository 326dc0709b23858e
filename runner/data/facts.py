"""Facts as tokens: which are the subject's, what the answer begins with, what each token is to the fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from subvene.runner.data.text import TextError, raw_ids
from subvene.specs import Fact

Role = Literal["before", "first_subject", "middle_subject", "last_subject", "first_after", "further", "last"]
ROLES: tuple[Role, ...] = get_args(Role)
"""What a token is to its fact, after Meng et al. (2022), figure 1; a subject of one token is its last one,
and the last token is that wherever it stands."""


@dataclass(frozen=True)
class FactTokens:
    """A fact as a model reads it.

    Attributes:
        fact: as it was declared.
        ids: token ids of the prompt, with what the tokenizer puts before it.
        pieces: what each of them stands for in the text.
        start: the first token of the subject.
        end: the first token behind it.
        answer: the first token of the answer.
        foil: that of the foil; None without one.
        swapped: the prompt about the other subject, as long and aligned; None without one.
    """

    fact: Fact
    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    start: int
    end: int
    answer: int
    foil: int | None = None
    swapped: tuple[int, ...] | None = None

    @property
    def roles(self) -> tuple[Role, ...]:
        """What each token is to the fact."""
        return roles_of(len(self.ids), self.start, self.end)


def roles_of(count: int, start: int, end: int) -> tuple[Role, ...]:
    """What each of `count` tokens is to a fact whose subject has the tokens from `start` to before `end`."""

    def role(token: int) -> Role:
        if token == count - 1 and token >= end:
            return "last"
        if token < start:
            return "before"
        if token == end - 1:
            return "last_subject"
        if token == start:
            return "first_subject"
        if token < end:
            return "middle_subject"
        return "first_after" if token == end else "further"

    return tuple(role(token) for token in range(count))


def fact_tokens(
    tokenizer: Any, fact: Fact, where: str, *, swap: bool = False, foil: bool = False
) -> FactTokens:
    """A fact's tokens, the boundaries in it being those of its text.

    Args:
        tokenizer: the model's.
        fact: as declared.
        where: what errors call it.
        swap: whether its other subject is needed.
        foil: whether its foil is needed.

    Raises:
        TextError: the tokenizer tells no offsets, the subject or the answer has no token of its own, the
            other subject has another number of tokens, answer and foil begin alike, or what is needed is not
            declared.
    """
    ids, spans = _with_offsets(tokenizer, fact.prompt, where)
    start, end = _subject(spans, fact.prompt.index(fact.subject), len(fact.subject), where)
    answer = continuation(tokenizer, fact.prompt, ids, fact.answer, f"{where}: answer")
    found = FactTokens(
        fact=fact,
        ids=ids,
        pieces=tuple(
            fact.prompt[low:high] if high > low else str(tokenizer.decode([token]))
            for token, (low, high) in zip(ids, spans, strict=True)
        ),
        start=start,
        end=end,
        answer=answer,
        foil=_foil(tokenizer, fact, ids, answer, where, needed=foil),
        swapped=_swapped(tokenizer, fact, ids, (start, end), where) if swap else None,
    )
    return found


def _with_offsets(tokenizer: Any, text: str, where: str) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    if not getattr(tokenizer, "is_fast", False):
        raise TextError(
            f"{where}: {type(tokenizer).__name__} does not tell which characters a token stands for, so the "
            "subject's tokens are not known; use a fast tokenizer"
        )
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids = tuple(encoded["input_ids"])
    if ids != tuple(raw_ids(tokenizer, text)):
        raise TextError(f"{where}: the prompt {text[:60]!r} holds special tokens; give its text alone")
    return ids, [(low, high) for low, high in encoded["offset_mapping"]]


def _subject(spans: Sequence[tuple[int, int]], begin: int, length: int, where: str) -> tuple[int, int]:
    """The tokens that hold a character of the subject."""
    own = [i for i, (low, high) in enumerate(spans) if low < begin + length and high > begin]
    if not own:
        raise TextError(f"{where}: subject: no token of the prompt stands for it")
    return own[0], own[-1] + 1


def continuation(tokenizer: Any, prompt: str, ids: Sequence[int], text: str, where: str) -> int:
    """The first token behind a prompt that goes on with a text, tokenized together as they would be read."""
    space = "" if prompt[-1].isspace() or text[0].isspace() else " "
    whole = tuple(raw_ids(tokenizer, f"{prompt}{space}{text}"))
    if whole[: len(ids)] != tuple(ids) or len(whole) == len(ids):
        raise TextError(
            f"{where}: behind the prompt, {text!r} is no token of its own: the tokenizer joins it to the "
            "prompt's last one; end the prompt at another place"
        )
    token = whole[len(ids)]
    if token == getattr(tokenizer, "unk_token_id", None) and text.strip() != tokenizer.unk_token:
        raise TextError(
            f"{where}: {text!r} begins with what the tokenizer does not know ({tokenizer.unk_token}), so "
            "that it is told from nothing else that it does not know; give another"
        )
    return token


def _foil(
    tokenizer: Any, fact: Fact, ids: Sequence[int], answer: int, where: str, *, needed: bool
) -> int | None:
    if fact.foil is None:
        if needed:
            raise TextError(f"{where}: expected a `foil`, since `metrics` has logit_difference")
        return None
    foil = continuation(tokenizer, fact.prompt, ids, fact.foil, f"{where}: foil")
    if foil == answer:
        raise TextError(
            f"{where}: foil: {fact.foil!r} and the answer {fact.answer!r} begin with the same token; give "
            "one that begins otherwise"
        )
    return foil


def _swapped(
    tokenizer: Any, fact: Fact, ids: Sequence[int], subject: tuple[int, int], where: str
) -> tuple[int, ...]:
    if fact.swap is None or fact.swapped_prompt is None:
        raise TextError(f"{where}: expected a `swap`, since the corruption is `swap`")
    other, spans = _with_offsets(tokenizer, fact.swapped_prompt, where)
    start, end = _subject(spans, fact.prompt.index(fact.subject), len(fact.swap), where)
    if (start, end) != subject:
        raise TextError(
            f"{where}: swap: expected a subject of {subject[1] - subject[0]} tokens, as the fact's has, "
            f"found {end - start} ({fact.swap!r})"
        )
    if (other[:start], other[end:]) != (tuple(ids[:start]), tuple(ids[end:])):
        raise TextError(f"{where}: swap: beside {fact.swap!r}, the prompt is tokenized otherwise")
    if other == tuple(ids):
        raise TextError(f"{where}: swap: {fact.swap!r} has the subject's own tokens; give another subject")
    return other
