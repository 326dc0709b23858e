"""Text that already is what a template makes: told by special tokens, and read as the conversation it is.

Files of finished runs hold prompts as the model read them. Put into the template once more, such a text is a
conversation about a conversation. It is taken apart with the pieces that the template puts around turns, and
only if the template makes exactly this text of the turns; otherwise it is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from subvene.runner.data.chat_template import Messages, TextError, has_template, render
from subvene.runner.data.reasoning import without_markers
from subvene.runner.models.chat_settings import chat_of

# What stands for words that a vocabulary lacks: corpora hold it as text, and it means no more than that.
_UNKNOWN = frozenset({"<unk>", "[UNK]"})
_NAMES = ("sbvnsystemq", "sbvnuseroneq", "sbvnanswerq", "sbvnusertwoq")
_TOO_SHORT = 3


@dataclass(frozen=True)
class Frame:
    """What a template puts around turns, as text.

    Attributes:
        begin: before the first user's turn.
        answer: between a user's turn and the assistant's.
        next: between an assistant's turn and the user's.
        cursor: after the last user's turn, where the model is to answer.
        asked: after the last user's turn otherwise.
        end: after an assistant's last turn.
        system: before a system prompt, and between it and the user's turn; None without that role.
    """

    begin: str
    answer: str
    next: str
    cursor: str
    asked: str
    end: str
    system: tuple[str, str] | None


def special_in(tokenizer: Any, text: str) -> str | None:
    """The first special token of a tokenizer that a text holds; None if it holds none."""
    pattern = _pattern(tokenizer)
    match = pattern.search(text) if pattern is not None else None
    return match[0] if match else None


def plain(tokenizer: Any, text: str, what: str) -> str:
    """The text, which holds no special token of the tokenizer.

    Args:
        tokenizer: the model's.
        text: somebody's words.
        what: what an error calls it.

    Raises:
        TextError: it holds one.
    """
    token = special_in(tokenizer, text)
    if token is not None:
        at = text.index(token)
        raise TextError(
            f"{what} holds {token!r}, a special token of this model's tokenizer, in "
            f"{text[max(0, at - 20) : at + 40]!r}: give the words alone, without what a chat template or a "
            "tokenizer puts around them"
        )
    return text


def reply_text(tokenizer: Any, reply: str) -> str:
    """A reply without the token that ended it, if it was kept.

    Raises:
        TextError: it holds other special tokens.
    """
    ends = {getattr(tokenizer, "eos_token", None)}
    if has_template(tokenizer) and special_in(tokenizer, reply) is not None:
        ends.add((frame_of(tokenizer) or _NO_FRAME).end.strip())
    shown = reply.rstrip()
    for end in sorted(filter(None, ends), key=len, reverse=True):
        if shown.endswith(end):
            reply = shown.removesuffix(end)
            break
    plain(tokenizer, without_markers(reply), "a reply")
    return reply


def conversation(tokenizer: Any, text: str) -> list[dict[str, str]] | None:
    """The conversation that a text is, as messages; None for somebody's plain words.

    Raises:
        TextError: it holds special tokens, and is nothing that this template makes.
    """
    token = special_in(tokenizer, text)
    frame = frame_of(tokenizer) if has_template(tokenizer) else None
    if frame is not None and (token is not None or _begins(text, frame)):
        for messages, cursor in _readings(text, frame):
            if _are_words(tokenizer, messages) and _is_made(tokenizer, messages, text, cursor):
                return messages
    if token is not None:
        raise TextError(
            f"the text {_short(text)} holds {token!r}, a special token of this model's tokenizer, and is "
            "nothing that its chat template makes, so it can be read neither as words nor as a conversation; "
            "give the words alone or messages, or pass it as raw text (chat=False, --raw), which leaves the "
            "template out"
        )
    return None


def frame_of(tokenizer: Any) -> Frame | None:
    """What the template puts around turns; None where it refuses plain conversations or repeats turns."""
    key = (str(tokenizer.chat_template), repr(chat_of(tokenizer)))
    known = _frames.get(tokenizer)
    if known is None or known[0] != key:
        known = _frames[tokenizer] = (key, _frame(tokenizer))
    return known[1]


_frames: WeakKeyDictionary[Any, tuple[Any, Frame | None]] = WeakKeyDictionary()
_NO_FRAME = Frame("", "", "", "", "", "", None)


def _frame(tokenizer: Any) -> Frame | None:
    system, first, answer, second = _NAMES
    user, reply = {"role": "user", "content": first}, {"role": "assistant", "content": answer}
    again = {"role": "user", "content": second}
    try:
        alone = _split(render(tokenizer, [user]), first)
        asked = _split(render(tokenizer, [user], cursor=False), first)
        whole = _split(render(tokenizer, [user, reply, again]), first, answer, second)
        ended = _split(render(tokenizer, [user, reply], cursor=False), first, answer)
    except TextError:
        return None
    if alone is None or asked is None or whole is None or ended is None:
        return None
    try:
        told = _split(render(tokenizer, [{"role": "system", "content": system}, user]), system, first)
    except TextError:
        told = None
    return Frame(
        begin=alone[0],
        answer=whole[1],
        next=whole[2],
        cursor=alone[1],
        asked=asked[1],
        end=ended[2],
        system=None if told is None else (told[0], told[1]),
    )


def _split(text: str, *names: str) -> list[str] | None:
    """What stands around names, each of which comes once and in this order; None otherwise."""
    parts = []
    for name in names:
        if text.count(name) != 1:
            return None
        before, _, text = text.partition(name)
        parts.append(before)
    return [*parts, text]


def _begins(text: str, frame: Frame) -> bool:
    """Whether a text begins as a conversation, for templates whose marks are no special tokens."""
    starts = [frame.begin, *(frame.system or ())[:1]]
    return any(len(start.strip()) >= _TOO_SHORT and text.startswith(start) for start in starts)


def _readings(text: str, frame: Frame) -> list[tuple[list[dict[str, str]], bool]]:
    """The ways in which a text may be turns, each with whether it ends at the cursor."""
    found = []
    begins: list[tuple[str, str | None]] = [(frame.begin, None)]
    if frame.system is not None:
        begins.append(frame.system)
    # The longer beginning first: it holds what the template says by itself, or a system prompt's place.
    for begin, then in sorted(begins, key=lambda pair: -len(pair[0])):
        if not text.startswith(begin):
            continue
        system, rest = None, text.removeprefix(begin)
        if then is not None:
            system, found_it, rest = rest.partition(then)
            if not found_it:
                continue
        for end, cursor, ends_asked in (
            (frame.cursor, True, True),
            (frame.asked, False, True),
            (frame.end, False, False),
        ):
            if rest.endswith(end):
                turns = _turns(rest.removesuffix(end) if end else rest, frame)
                if turns is not None and (len(turns) % 2 == 1) == ends_asked:
                    told = [] if system is None else [{"role": "system", "content": system}]
                    found.append(([*told, *turns], cursor))
    return found


def _turns(text: str, frame: Frame) -> list[dict[str, str]] | None:
    """User's and assistant's turns in turn."""
    turns: list[dict[str, str]] = []
    role, rest = "user", text
    while True:
        between = frame.answer if role == "user" else frame.next
        content, found, after = rest.partition(between) if between else (rest, "", "")
        turns.append({"role": role, "content": content})
        if not found:
            return turns
        role, rest = ("assistant" if role == "user" else "user"), after


def _are_words(tokenizer: Any, messages: Messages) -> bool:
    return not any(special_in(tokenizer, without_markers(str(message["content"]))) for message in messages)


def _is_made(tokenizer: Any, messages: Messages, text: str, cursor: bool) -> bool:
    # Reasoning of earlier turns stands in the text if the template leaves it there.
    settings = replace(chat_of(tokenizer), reasoning="keep")
    try:
        return render(tokenizer, messages, settings=settings, cursor=cursor) == text
    except TextError:
        return False


def _pattern(tokenizer: Any) -> re.Pattern[str] | None:
    known = _patterns.get(tokenizer)
    size = _size(tokenizer)
    if known is None or known[0] != size:
        known = _patterns[tokenizer] = (size, _compiled(tuple(sorted(_special(tokenizer)))))
    return known[1]


_patterns: WeakKeyDictionary[Any, tuple[Any, re.Pattern[str] | None]] = WeakKeyDictionary()


def _size(tokenizer: Any) -> Any:
    return [getattr(tokenizer, name, None) for name in ("vocab_size", "bos_token", "eos_token", "pad_token")]


def _special(tokenizer: Any) -> set[str]:
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return {
        *(str(token) for token in added if token.special),
        *map(str, getattr(tokenizer, "all_special_tokens", ())),
    } - _UNKNOWN


@lru_cache
def _compiled(tokens: tuple[str, ...]) -> re.Pattern[str] | None:
    longest = sorted(filter(str.strip, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest))) if longest else None


def _short(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}…"
