"""Transcripts: conversations in a file of any common form, and statistics of what is measured on their turns.

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

from subvene.runner.data.hub_rows import hub_rows
from subvene.runner.data.limits import TooLongError, context_length
from subvene.runner.data.rendered import conversation
from subvene.runner.data.span import Text
from subvene.runner.data.text import TextError, prompt_ids, reply_ids
from subvene.runner.files.statistics import correlation
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


def turns_in(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of the assistant's messages."""
    return [i for i, message in enumerate(messages) if message["role"] == "assistant"]


class Transcripts(list[Transcript]):
    """Transcripts, and which columns they were read from."""

    def __init__(self, transcripts: Iterable[Transcript], used: Used) -> None:
        super().__init__(transcripts)
        self.used = used


@dataclass(frozen=True)
class Turn:
    """An assistant's turn.

    Attributes:
        transcript: index of its transcript.
        turn: which of the assistant's turns it is, from 0.
        text: what it says.
        read: the tokens that the model had read when it spoke, then those of the turn, which are the span.
        score: of the turn itself; None if only the row has one, or nobody gave any.
    """

    transcript: int
    turn: int
    text: str
    read: Text
    score: float | None


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


def turns_of(tokenizer: Any, transcripts: Sequence[Transcript], *, chat: bool | None = None) -> list[Turn]:
    """Every assistant's turn, after what the model had read when it spoke.

    The prompt of a turn is made as `generate` makes it, and the turn is tokenised on its own, so that the
    boundary is exact and no token of the template is among the span.

    Args:
        tokenizer: the model's.
        transcripts: the conversations.
        chat: False for prompts without a chat template.

    Raises:
        TranscriptError: a conversation has no assistant's turn or begins with one, or the chat template
            refuses it.
    """
    turns = []
    for index, transcript in enumerate(transcripts):
        messages = _messages_of(tokenizer, transcript)
        if not turns_in(messages):
            raise TranscriptError(f"{transcript.where}: there is no turn of the role `assistant`")
        for number, at in enumerate(turns_in(messages)):
            before, message = messages[:at], messages[at]
            prompt = _prompt_ids(tokenizer, before, transcript.where, chat)
            try:
                before_it, response = reply_ids(tokenizer, prompt, message["content"])
            except TextError as error:
                raise TranscriptError(f"{transcript.where}: {error}") from error
            ids = (*before_it, *response)
            read = Text(ids, len(before_it), len(ids))
            turns.append(Turn(index, number, message["content"], read, transcript.scores.get(at)))
    return turns


def refuse_long(
    model: Any, turns: Sequence[Turn], transcripts: Sequence[Transcript], lengths: Sequence[int] | None = None
) -> None:
    """Refuse turns that the model cannot read whole.

    Args:
        model: the model.
        turns: the turns.
        transcripts: theirs.
        lengths: tokens that are read of each, with what precedes it; default: all.

    Raises:
        TooLongError: naming the row, how long it is, and how many more there are.
    """
    lengths = [len(turn.read.ids) for turn in turns] if lengths is None else lengths
    longest = context_length(model)
    long = [i for i, length in enumerate(lengths) if longest is not None and length > longest]
    if long:
        where = transcripts[turns[long[0]].transcript].where
        raise TooLongError(
            f"{where}: turn {turns[long[0]].turn} ends at token {lengths[long[0]]} of its conversation, and "
            f"this model reads at most {longest}; so do {len(long) - 1} further turns of {len(turns)}: leave "
            "these out, or shorten them"
        )


def drift(values: Sequence[float], turns: Sequence[Turn]) -> dict[str, Any]:
    """How a projection moves over the turns of a conversation.

    Args:
        values: one per turn; NaN (an empty turn) is left out.
        turns: the turns.

    Returns:
        `by_turn`: for each turn number its mean and in how many conversations there is one; `slopes`: the
        least-squares slope per turn of every conversation of two turns or more (transcript index → slope);
        `mean_slope`, and its `standard_error` over conversations: None where there are none, or only one.
    """
    from scipy import stats

    by_turn: dict[int, list[float]] = {}
    of_conversation: dict[int, list[tuple[int, float]]] = {}
    for value, turn in zip(values, turns, strict=True):
        if math.isfinite(value):
            by_turn.setdefault(turn.turn, []).append(value)
            of_conversation.setdefault(turn.transcript, []).append((turn.turn, value))
    slopes = {
        index: float(stats.linregress(*zip(*points, strict=True)).slope)
        for index, points in of_conversation.items()
        if len(points) > 1
    }
    found = list(slopes.values())
    return {
        "by_turn": [
            {"turn": turn, "n": len(some), "mean": math.fsum(some) / len(some)}
            for turn, some in sorted(by_turn.items())
        ],
        "slopes": slopes,
        "mean_slope": math.fsum(found) / len(found) if found else None,
        "standard_error": float(stats.sem(found)) if len(found) > 1 else None,
        "conversations": len(found),
    }


def against_scores(
    values: Sequence[float], turns: Sequence[Turn], transcripts: Sequence[Transcript]
) -> dict[str, Any] | None:
    """The correlation of a projection with the scores of a file; None if the file has none.

    Where messages have scores, a point is a turn that has one; else a point is a row that has one, with the
    mean projection of its turns.
    """
    if any(turn.score is not None for turn in turns):
        points = [(value, turn.score) for value, turn in zip(values, turns, strict=True)]
        return {"unit": "turn"} | correlation(*_known(points))
    if all(transcript.score is None for transcript in transcripts):
        return None
    rows: list[list[float]] = [[] for _ in transcripts]
    for value, turn in zip(values, turns, strict=True):
        if math.isfinite(value):
            rows[turn.transcript].append(value)
    means = [math.fsum(some) / len(some) if some else math.nan for some in rows]
    points = [(mean, transcript.score) for mean, transcript in zip(means, transcripts, strict=True)]
    return {"unit": "row"} | correlation(*_known(points))


def _known(points: Iterable[tuple[float, float | None]]) -> tuple[list[float], list[float]]:
    known = [(value, score) for value, score in points if score is not None and math.isfinite(value)]
    return [value for value, _ in known], [score for _, score in known]


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
        tuple({"role": message["role"], "content": message["content"]} for message in messages),
        score,
        {i: own for i, value in scores.items() if (own := _number(value, f"{where}: score")) is not None},
        text,
    )


def _conversation(taken: Taken, where: str) -> list[dict[str, Any]]:
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


def _answered(taken: Taken, where: str) -> list[dict[str, Any]]:
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


def _messages_of(tokenizer: Any, transcript: Transcript) -> tuple[dict[str, str], ...]:
    """The messages; of a row that is one text, those that the template made it of."""
    if transcript.text is None:
        return transcript.messages
    try:
        found = conversation(tokenizer, transcript.text)
    except TextError as error:
        raise TranscriptError(f"{transcript.where}: {error}") from error
    if found is None:
        raise TranscriptError(
            f"{transcript.where}: the text is no conversation that this model's chat template makes, and "
            "there is no other column that could be one"
        )
    return tuple(found)


def _prompt_ids(tokenizer: Any, before: Sequence[dict[str, str]], where: str, chat: bool | None) -> list[int]:
    if not before:
        raise TranscriptError(
            f"{where}: the conversation begins with the assistant, and there is nothing that it answers; "
            "leave that turn out"
        )
    # A lone user's turn is a prompt like any other, also for a model without a chat template.
    alone = len(before) == 1 and before[0]["role"] == "user"
    if chat is False and not alone:
        raise TranscriptError(f"{where}: a conversation of several messages needs the chat template")
    try:
        return prompt_ids(tokenizer, before[0]["content"] if alone else before, chat=chat)
    except TextError as error:
        raise TranscriptError(f"{where}: {error}") from error
