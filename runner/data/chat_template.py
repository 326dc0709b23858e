"""The one place where a chat template is called, and its refusals as errors that say what to do."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from subvene.runner.data.reasoning import without_reasoning
from subvene.runner.data.said import texts_of, unsaid, unwritable
from subvene.runner.models.chat_settings import ChatSettings, chat_of
from subvene.specs import SubveneError
from subvene.specs._flaws import nearest

Messages = Sequence[Mapping[str, JsonValue]]


_PROBE = "sbvnprobeq"


class TextError(SubveneError, ValueError):
    """A text cannot be made into the token ids that were asked for."""


def has_template(tokenizer: Any) -> bool:
    """Whether a tokenizer has a chat template."""
    return getattr(tokenizer, "chat_template", None) is not None


def render(
    tokenizer: Any, messages: Messages, *, settings: ChatSettings | None = None, cursor: bool = True
) -> str:
    """A conversation as the template's text.

    Args:
        tokenizer: the model's.
        messages: objects with `role` and `content`.
        settings: those that the tokenizer carries, if None.
        cursor: with what makes the model answer at the end.

    Raises:
        TextError: the template refuses the conversation or fails on it, or leaves words of it out; or a text
            of it is none.
    """
    text: str = _rendered(tokenizer, messages, settings, cursor, tokenize=False)
    return text


def rendered_ids(tokenizer: Any, messages: Messages, *, settings: ChatSettings | None = None) -> list[int]:
    """A conversation as token ids, up to the token whose output begins the model's answer.

    Raises:
        TextError: as `render`.
    """
    return list(_rendered(tokenizer, messages, settings, cursor=True, tokenize=True)["input_ids"])


def takes_system(tokenizer: Any) -> bool:
    """Whether a system prompt of its own role arrives in what the template renders."""
    asked = ({"role": "system", "content": _PROBE}, {"role": "user", "content": "?"})
    try:
        render(tokenizer, asked, settings=ChatSettings(chat_of(tokenizer).chat_template_kwargs))
    except TextError:
        return False
    return True


def _rendered(
    tokenizer: Any, messages: Messages, settings: ChatSettings | None, cursor: bool, *, tokenize: bool
) -> Any:
    settings = chat_of(tokenizer) if settings is None else settings
    _check_variables(tokenizer, settings)
    turns = [dict(message) for message in messages]
    if settings.reasoning == "drop":
        turns = [_answered(message) for message in turns]
    if settings.system == "fold":
        turns = _folded(turns)

    def call(some: Messages, tokenize: bool) -> Any:
        return tokenizer.apply_chat_template(
            some,
            tokenize=tokenize,
            add_generation_prompt=cursor,
            return_dict=tokenize,
            **settings.chat_template_kwargs,
        )

    for i, message in enumerate(turns):
        for text in texts_of(message):
            writable(text, f"message {i} ({message.get('role')})")
    if turns and turns[0]["role"] == "system":
        _check_system(call, turns)
    try:
        text = call(turns, False)
        made = call(turns, True) if tokenize else text
    except Exception as error:
        if not _of_template(error):
            raise
        raise TextError(f"the model's chat template {_words(error)}") from error
    if (lost := unsaid(turns, text)) is not None:
        raise TextError(
            f"the model's chat template leaves out what was said: {lost}, does not stand whole in what it "
            "makes of the conversation; mend the template in the model's folder, or give raw text "
            "(chat=False, --raw)"
        )
    return made


def writable(text: str, what: str) -> str:
    """The text, which a tokenizer can read.

    Raises:
        TextError: it holds lone surrogates; `what` is what the error calls it.
    """
    if (flaw := unwritable(text)) is not None:
        raise TextError(f"{what} is no text: {flaw}")
    return text


def _check_variables(tokenizer: Any, settings: ChatSettings) -> None:
    """A variable that the template does not use would change nothing and say nothing."""
    for name in settings.chat_template_kwargs:
        templates = tokenizer.chat_template
        text = " ".join(templates.values()) if isinstance(templates, dict) else str(templates)
        words = set(re.findall(r"[A-Za-z_]\w*", text))
        if name not in words:
            hint = nearest(name, words)
            raise TextError(
                f"chat_template_kwargs: the model's chat template has no variable {name!r}"
                + (f"; did you mean {hint!r}?" if hint else "; leave it out")
            )


def _answered(message: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """An assistant's turn as what it answered."""
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, str):
        return message
    return {**message, "content": without_reasoning(content)}


def _folded(messages: list[dict[str, JsonValue]]) -> list[dict[str, JsonValue]]:
    """The conversation with its system prompt before the first user's turn."""
    if not messages or messages[0]["role"] != "system":
        return messages
    system, *rest = messages
    if not rest or rest[0]["role"] != "user" or not isinstance(rest[0]["content"], str):
        raise TextError("system: fold puts a system prompt before the user's first turn, and there is none")
    return [{**rest[0], "content": f"{system['content']}\n\n{rest[0]['content']}"}, *rest[1:]]


def _check_system(call: Any, messages: list[dict[str, JsonValue]]) -> None:
    # A text of its own: the prompt's could stand in a turn as well.
    probe = [{**messages[0], "content": _PROBE}, *messages[1:]]
    try:
        if _PROBE in call(probe, False):
            return
        why = "leaves system prompts out"
    except Exception as error:
        if not _of_template(error) or not _renders(call, messages[1:]):
            return  # whatever is wrong, the call for what was asked says it
        why = f"has no system role ({error})"
    raise TextError(
        f"the model's chat template {why}; set `system: fold` under `model:` (system='fold' in Python), "
        "which puts the system prompt before the user's first turn, or leave the system prompt out"
    )


def _renders(call: Any, messages: list[dict[str, JsonValue]]) -> bool:
    try:
        call(messages, False)
    except Exception as error:
        if not _of_template(error):
            raise
        return False
    return True


def _of_template(error: Exception) -> bool:
    """Whether jinja2, which transformers imports by itself, or what runs in a template raised it.

    A ValueError or TypeError is transformers' own word on the conversation, or a filter's on what it got.
    """
    return _by_jinja(error) or isinstance(error, ValueError | TypeError) or _in_template(error)


def _by_jinja(error: Exception) -> bool:
    return any(kind.__module__.partition(".")[0] == "jinja2" for kind in type(error).__mro__)


def _in_template(error: Exception) -> bool:
    """Whether an error passed through jinja2: a template divides, indexes and calls as Python does."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(str(frame.f_globals.get("__name__", "")).partition(".")[0] == "jinja2" for frame in frames)


def _words(error: Exception) -> str:
    # What a template says by itself is a sentence; what Python says of its code is not.
    if _by_jinja(error) or not _in_template(error):
        return f"refuses this conversation: {error}"
    return f"fails on this conversation ({type(error).__name__}: {error}); mend it in the model's folder"
