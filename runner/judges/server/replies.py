"""Replies of an OpenAI-compatible server: what one says, and when it says nothing that can be used.

A server may answer with status 200 and an error, a page of its proxy, half a document, or a completion
without the log-probabilities that were asked for. None of these is a reply: it is asked for again, and never
kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

# A server may round a log-probability to a little above 0, and several so that they come to more than 1.
_ROUNDING = 0.01


@dataclass(frozen=True)
class Reply:
    """The beginning of a reply.

    Attributes:
        text: the reply, as far as it was asked for.
        top: the likeliest first tokens with their log-probabilities; empty if none were asked for.
    """

    text: str
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class NoReply:
    """The server refused this request, or answered with what is no reply.

    Attributes:
        reason: which of these, and what it said.
        no_log_probs: whether it is a completion that lacks the log-probabilities.
        refused: whether the server refused the request itself (400, 422): asking again gives the same.
    """

    reason: str
    no_log_probs: bool = False
    refused: bool = False


def read_reply(content: str, top: int) -> Reply | NoReply:
    """The reply in what a server sent with status 200.

    llama.cpp gives completions their log-probabilities as chats.

    Args:
        content: the body.
        top: how many of the likeliest first tokens were asked for.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return NoReply("the server's reply is no JSON")
    try:
        choice, text = _choice(document)
        reply = Reply(text, tuple(_likeliest(choice.get("logprobs"))) if top else ())
    except _Unusable as error:
        return NoReply(str(error))
    return unusable(reply, top) or reply


def unusable(reply: Reply, top: int) -> NoReply | None:
    """Why a reply cannot be used where `top` of the likeliest tokens were asked for; None if it can."""
    if top == 0:
        return None if reply.text.strip() else NoReply("the server's reply is empty")
    if not reply.top:
        return NoReply("the server's reply has no log-probabilities", no_log_probs=True)
    values = [value for _, value in reply.top]
    if any(math.isnan(value) or value > _ROUNDING for value in values):
        return NoReply("the server's log-probabilities are none: NaN, or above 0")
    mass = math.fsum(map(math.exp, values))
    if not 0 < mass <= 1 + _ROUNDING:
        return NoReply(f"the server's log-probabilities are none: together they make {mass:.3g}")
    return None


class _Unusable(Exception):
    """What stands in the way of reading a document."""


def _choice(document: Any) -> tuple[dict[str, JsonValue], str]:
    """The first choice, and its text."""
    if not isinstance(document, dict):
        raise _Unusable(_FORM)
    if document.get("error"):
        raise _Unusable(f"the server answered with an error: {_message(document['error'])}")
    choices = document.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise _Unusable("the server's reply has no choices")
    if choice.get("error") or choice.get("finish_reason") == "error":
        raise _Unusable(f"the server answered with an error: {_message(choice.get('error'))}")
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    # A chat whose only token is its end has no content.
    if text is None and isinstance(message, dict):
        text = ""
    if not isinstance(text, str):
        raise _Unusable(_FORM)
    return choice, text


_FORM = "the server's reply has not the form of a completion"


def _message(error: Any) -> str:
    said = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(said).split())


def _likeliest(logprobs: Any) -> Iterable[tuple[str, float]]:
    """The first token's alternatives, nothing if there are none."""
    if not logprobs:
        return
    if not isinstance(logprobs, dict):
        raise _Unusable(_FORM)
    chat = "content" in logprobs
    tokens = logprobs["content"] if chat else logprobs.get("top_logprobs")
    if not tokens:
        return
    first = tokens[0] if isinstance(tokens, list) else None
    if chat:
        first = first.get("top_logprobs") if isinstance(first, dict) else None
        pairs = [_pair(one) for one in first] if isinstance(first, list) else None
    else:
        pairs = list(first.items()) if isinstance(first, dict) else None
    if pairs is None:
        raise _Unusable(_FORM)
    for token, value in pairs:
        if not isinstance(token, str) or isinstance(value, bool) or not isinstance(value, int | float):
            raise _Unusable("the server's log-probabilities are none: they are no numbers")
        yield token, float(value)


def _pair(one: Any) -> tuple[Any, Any]:
    return (one.get("token"), one.get("logprob")) if isinstance(one, dict) else (None, None)
