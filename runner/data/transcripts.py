"""Transcripts: conversations in a file of any common form; their turns as tokens are in `turns`.

What the columns of a row mean is told by `specs.columns`; files are JSON Lines, a JSON list, or CSV, and data
sets of the Hub have the same rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from subvene.runner.data.hub_rows import hub_rows
from subvene.specs import SubveneError
from subvene.specs.columns import (
    Meaning,
    Taken,
    Used,
    asked,
    messages_of,
    missing,
    says_again,
    take,
    text_of,
    with_system,
)
from subvene.specs.rows import Row, file_rows, short

_WANTED: frozenset[Meaning] = frozenset(
    {"messages", "prompt", "input", "history", "system", "response", "reasoning", "text", "score"}
)

# As `messages_of` writes the reasoning of a field of its own.
_BLOCK = re.compile(r"<think>(.*?)</think>", re.DOTALL)


class TranscriptError(SubveneError):
    """A transcript cannot be read; the message names the file, the line and the column."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a row are what; None: the first of the usual names that a row has.

    Attributes:
        prompt: a user's turn as text, or the messages before the response.
        response: the assistant's turn.
        messages: the whole conversation.
        system: a system prompt beside `prompt`.
        score: a number that somebody gave to the row.
    """

    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    system: str | None = None
    score: str | None = None


@dataclass(frozen=True)
class Transcript:
    """A conversation.

    Attributes:
        where: the file and line, or the data set and row, for people.
        messages: objects with `role` and `content`, in order.
        score: of the row; None if nobody gave any.
        scores: of single messages, by their index.
        text: of a row that is one text, made by a chat template; a tokenizer reads its messages.
    """

    where: str
    messages: tuple[dict[str, str], ...]
    score: float | None
    scores: Mapping[int, float]
    text: str | None = None

    @property
    def turns(self) -> list[int]:
        """Indices of the assistant's messages."""
        return turns_in(self.messages)


def turns_in(messages: Sequence[Mapping[str, JsonValue]]) -> list[int]:
    """Indices of the assistant's messages."""
    return [i for i, message in enumerate(messages) if message["role"] == "assistant"]


class Transcripts(list[Transcript]):
    """Transcripts, and which columns they were read from."""

    def __init__(self, transcripts: Iterable[Transcript], used: Used) -> None:
        super().__init__(transcripts)
        self.used = used


def read_transcripts(path: Path, columns: Columns | None = None, limit: int | None = None) -> Transcripts:
    """The first `limit` transcripts (all if None) of a file.

    Args:
        path: ends in .jsonl, .json (a list of rows) or .csv.
        columns: which columns are what.
        limit: at most so many.

    Raises:
        TranscriptError: naming the line and the column.
    """
    rows = islice(file_rows(path, TranscriptError), limit)
    return transcripts_of(rows, columns or Columns(), str(path))


def hub_transcripts(
    name: str,
    *,
    columns: Columns | None = None,
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
    limit: int | None = None,
) -> Transcripts:
    """The first `limit` transcripts of a data set of the Hugging Face Hub, streamed.

    Raises:
        TranscriptError: it cannot be read, or a row is none.
    """
    rows = hub_rows(name, subset=subset, split=split, revision=revision, fail=TranscriptError)
    return transcripts_of(islice(rows, limit), columns or Columns(), f"dataset {name}")


def transcripts_of(rows: Iterable[Row], columns: Columns, source: str) -> Transcripts:
    """Rows, each with where it stands, as transcripts.

    Raises:
        TranscriptError: a row is none, there are no rows, or no row has a score that was asked for.
    """
    used = Used()
    found = Transcripts((_transcript(row, where, columns, used) for where, row in rows), used)
    if not found:
        raise TranscriptError(f"{source}: holds no row")
    if columns.score is not None and all(t.score is None and not t.scores for t in found):
        raise TranscriptError(f"{source}: no row has a number in the column {columns.score!r}")
    return found


def _transcript(row: Any, where: str, columns: Columns, used: Used) -> Transcript:
    chosen: dict[Meaning, str | None] = {
        "prompt": columns.prompt,
        "response": columns.response,
        "messages": columns.messages,
        "system": columns.system,
        # Rows may lack the score that others have.
        "score": columns.score if isinstance(row, Mapping) and columns.score in row else None,
    }
    taken = take(row, where, _WANTED, chosen=chosen, fail=TranscriptError)
    score = _number(taken.get("score"), f"{where}: {columns.score or 'score'}")
    text = None
    if "messages" in taken:
        messages = _conversation(taken, where)
    elif "prompt" in taken and "response" in taken:
        messages = _answered(taken, where)
    elif "text" in taken and not taken.keys() & {"prompt", "response", "input", "history", "system"}:
        text, messages = text_of(taken["text"], f"{where}: {taken.columns['text']}", TranscriptError), []
    else:
        raise missing(
            row,
            where,
            "`messages` (or `conversations`), a prompt (`prompt`, `question`, `instruction`) and a response "
            "(`response`, `answer`, `completion`, `output`), or a `text` that the chat template made (say "
            "which with --prompt and --response)",
            TranscriptError,
        )
    used.note(taken)
    scores = {i: message["score"] for i, message in enumerate(messages) if "score" in message}
    return Transcript(
        where,
        tuple({name: str(message[name]) for name in ("role", "content")} for message in messages),
        score,
        {i: own for i, value in scores.items() if (own := _number(value, f"{where}: score")) is not None},
        text,
    )


def _conversation(taken: Taken, where: str) -> list[dict[str, JsonValue]]:
    """The messages of a row that has them; its other columns say the same, or something of their own."""
    column = taken.columns["messages"]
    messages = messages_of(taken["messages"], f"{where}: {column}", TranscriptError)
    contents = [message["content"] for message in messages]
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    of = {"response": answers, "reasoning": _BLOCK.findall("\n".join(answers))}
    for meaning in ("prompt", "input", "history", "response", "reasoning", "text"):
        if meaning not in taken:
            continue
        rendered = meaning in ("prompt", "text")
        if not says_again(taken[meaning], of.get(meaning, contents), rendered=rendered):
            raise TranscriptError(
                f"{where}: {taken.columns[meaning]}: says what the conversation in {column} does not; say "
                "which is meant with --messages, or with --prompt and --response"
            )
        taken.drop(meaning)
    return with_system(messages, taken, where, TranscriptError)


def _answered(taken: Taken, where: str) -> list[dict[str, JsonValue]]:
    """The messages of a row with a prompt and a response."""
    place = f"{where}: {taken.columns['response']}"
    response = text_of(taken["response"], place, TranscriptError, empty=True)
    if "text" in taken:
        if not says_again(taken["text"], [response], rendered=True):
            raise TranscriptError(f"{where}: {taken.columns['text']}: says what prompt and response do not")
        taken.drop("text")
    before = asked(taken, where, TranscriptError)
    if (reasoning := taken.get("reasoning")) is not None:
        reasoning = text_of(reasoning, f"{where}: {taken.columns['reasoning']}", TranscriptError)
        response = f"<think>\n{reasoning.strip()}\n</think>\n\n{response}"
    return [*before, {"role": "assistant", "content": response}]


def _number(value: Any, where: str) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise TranscriptError(f"{where}: expected a finite number, or nothing, found {short(value)}")
    return number
