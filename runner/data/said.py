"""Whether what somebody said stands in what a chat template made of it, whatever the template puts around it.

A template may strip and fold white space, change the case, and escape for HTML or JSON; one that cuts or
leaves out words gives the model another conversation than the one it was called with.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping

from pydantic import JsonValue

from subvene.runner.data.reasoning import without_reasoning

_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|[\"\\/bfnrt])")
_SPACE = re.compile(r"\s+")
# A system prompt has a check of its own, which knows what to do about it.
_ROLES = ("user", "assistant")


def texts_of(message: Mapping[str, JsonValue]) -> Iterator[str]:
    """The texts of a message, whose content may be parts."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list | tuple):
        for part in content:
            if isinstance(part, Mapping) and isinstance(text := part.get("text"), str):
                yield text


def unsaid(messages: list[dict[str, JsonValue]], rendered: str) -> str | None:
    """The first turn of which a rendering leaves words out, in words; None where all of them stand in it.

    Args:
        messages: what the template was given. Of an answer its reasoning may be left out.
        rendered: what it made of them.
    """
    readings = [_bare(text) for text in (rendered, html.unescape(rendered), _unescaped(rendered))]
    for i, message in enumerate(messages):
        if message.get("role") not in _ROLES:
            continue
        for text in texts_of(message):
            words = _bare(text if message["role"] == "user" else without_reasoning(text))
            if not any(words in reading for reading in readings):
                return f"message {i} ({message['role']}), {text[:60]!r}"
    return None


def unwritable(text: str) -> str | None:
    """Where a text holds what is no character, in words; no tokenizer can read it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        near = text[max(0, error.start - 20) : error.start + 20]
        return (
            f"{text[error.start]!r} at position {error.start}, in {near!r}, is half of a surrogate pair and "
            "no character: the text was decoded wrongly, or cut; read it anew as UTF-8"
        )
    return None


def _bare(text: str) -> str:
    return _SPACE.sub("", text).casefold()


def _unescaped(text: str) -> str:
    """Text with JSON's escapes undone."""
    return _ESCAPE.sub(lambda match: str(json.loads(f'"{match[0]}"')), text)
