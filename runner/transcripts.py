"""Transcripts: conversations in a file of any common form, and statistics of what is measured on their turns.

A row holds `messages` (a list of objects with `role` and `content`), or a prompt and a response in columns of
their own. Files are JSON Lines, a JSON list, or CSV; data sets of the Hub have the same rows.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from subvene.runner.activations import Text
from subvene.runner.progress import status
from subvene.runner.statistics import correlation
from subvene.runner.text import prompt_ids, response_ids
from subvene.specs import SubveneError
from subvene.specs.regular_file import read_bytes

PROMPTS, RESPONSES = ("prompt", "question", "instruction"), ("response", "answer", "completion", "output")
MESSAGES, SCORE, SYSTEM = "messages", "score", "system"


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
    """

    where: str
    messages: tuple[dict[str, str], ...]
    score: float | None
    scores: Mapping[int, float]

    @property
    def turns(self) -> list[int]:
        """Indices of the assistant's messages."""
        return [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]


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


def read_transcripts(
    path: Path, columns: Columns | None = None, limit: int | None = None
) -> list[Transcript]:
    """The first `limit` transcripts (all if None) of a file.

    Args:
        path: ends in .jsonl, .json (a list of rows) or .csv.
        columns: which columns are what.
        limit: at most so many.

    Raises:
        TranscriptError: naming the line and the column.
    """
    columns = columns or Columns()
    try:
        # Bytes: csv reads line ends, those within quoted fields too, itself.
        content = read_bytes(path).decode("utf-8-sig")
    except OSError as error:
        raise TranscriptError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise TranscriptError(f"{path}: not UTF-8 text (byte {error.start}: {error.reason})") from error
    readers = {".jsonl": _lines, ".json": _list, ".csv": _table}
    if path.suffix.lower() not in readers:
        raise TranscriptError(f"{path}: expected a file that ends in {', '.join(readers)}")
    rows = readers[path.suffix.lower()](path, content)
    return transcripts_of(islice(rows, limit), columns, str(path))


def hub_transcripts(
    name: str,
    *,
    columns: Columns | None = None,
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
    limit: int | None = None,
) -> list[Transcript]:
    """The first `limit` transcripts of a data set of the Hugging Face Hub, streamed.

    Raises:
        TranscriptError: it cannot be read, or a row is none.
    """
    import datasets

    found: list[tuple[str, Any]] = []
    try:
        with status(f"reading {name}"):
            rows = datasets.load_dataset(
                name, subset, split=split, revision=revision, streaming=True, trust_remote_code=False
            )
            for i, row in enumerate(islice(rows, limit)):
                found.append((f"dataset {name}, split {split}, row {i}", row))
    except (OSError, ValueError, LookupError, datasets.exceptions.DatasetsError) as error:
        said = str(error).strip().partition("\n")[0]
        raise TranscriptError(
            f"dataset {name!r} (subset {subset or 'none'}, split {split}) cannot be read: {said}; check its "
            "name and that the Hub can be reached, or give a file"
        ) from error
    return transcripts_of(found, columns or Columns(), f"dataset {name}")


def transcripts_of(rows: Iterable[tuple[str, Any]], columns: Columns, source: str) -> list[Transcript]:
    """Rows, each with where it stands, as transcripts.

    Raises:
        TranscriptError: a row is none, there are no rows, or no row has a score that was asked for.
    """
    found = [_transcript(row, where, columns) for where, row in rows]
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
        if not transcript.turns:
            raise TranscriptError(f"{transcript.where}: there is no turn of the role `assistant`")
        for number, at in enumerate(transcript.turns):
            before, message = transcript.messages[:at], transcript.messages[at]
            prompt = _prompt_ids(tokenizer, before, transcript.where, chat)
            response = response_ids(tokenizer, message["content"])
            ids = (*prompt, *response)
            read = Text(ids, len(prompt), len(ids))
            turns.append(Turn(index, number, message["content"], read, transcript.scores.get(at)))
    return turns


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


def _lines(path: Path, content: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines: JSON text may hold U+2028 as it is.
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _parsed(line, f"{path}:{number}")


def _list(path: Path, content: str) -> Iterator[tuple[str, Any]]:
    rows = _parsed(content, str(path))
    if not isinstance(rows, list):
        raise TranscriptError(f"{path}: expected a list of rows, found {_short(rows)}")
    for i, row in enumerate(rows):
        yield f"{path}: [{i}]", row


def _table(path: Path, content: str) -> Iterator[tuple[str, Any]]:
    # strict: a quote that is never closed is an error, not a field that swallows the rest of the file.
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    header: list[str] = []
    line = 1
    try:
        for fields in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if not fields:
                continue
            if not header:
                header = fields
                if len(set(header)) < len(header):
                    twice = next(name for name in header if header.count(name) > 1)
                    raise TranscriptError(f"{where}: there are two columns called {twice!r}")
                continue
            if len(fields) != len(header):
                raise TranscriptError(
                    f"{where}: expected {len(header)} fields, as the header has, found {len(fields)}"
                )
            yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise TranscriptError(f"{path}:{line}: not CSV ({error})") from error


def _parsed(content: str, where: str) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        line = f" line {error.lineno}," if error.lineno > 1 else ""
        raise TranscriptError(f"{where}: not JSON ({error.msg},{line} column {error.colno})") from error
    except RecursionError as error:
        raise TranscriptError(f"{where}: not JSON ({error})") from error


def _transcript(row: Any, where: str, columns: Columns) -> Transcript:
    if not isinstance(row, dict):
        raise TranscriptError(f"{where}: expected a row with columns, found {_short(row)}")
    messages_in = columns.messages or (MESSAGES if row.get(MESSAGES) and columns.prompt is None else None)
    if messages_in is not None:
        messages = _messages(_column(row, messages_in, where, "messages"), f"{where}: {messages_in}")
    else:
        messages = _of_columns(row, where, columns)
    scores = {i: message["score"] for i, message in enumerate(messages) if "score" in message}
    return Transcript(
        where,
        tuple({"role": message["role"], "content": message["content"]} for message in messages),
        _number(row.get(columns.score or SCORE), f"{where}: {columns.score or SCORE}"),
        {i: score for i, value in scores.items() if (score := _number(value, f"{where}: score")) is not None},
    )


def _of_columns(row: Mapping[str, Any], where: str, columns: Columns) -> list[dict[str, Any]]:
    """The messages of a row with a prompt and a response."""
    for name, option in ((columns.prompt, "prompt"), (columns.response, "response")):
        if name is not None:
            _column(row, name, where, option)
    prompt_in = columns.prompt or next((name for name in PROMPTS if name in row), None)
    response_in = columns.response or next((name for name in RESPONSES if name in row), None)
    if prompt_in is None or response_in is None:
        there = ", ".join(map(str, row)) or "none"
        raise TranscriptError(
            f"{where}: expected `{MESSAGES}`, or a column of {', '.join(PROMPTS)} and one of "
            f"{', '.join(RESPONSES)}; the columns are: {there} (say which with --prompt and --response)"
        )
    prompt = _column(row, prompt_in, where, "prompt")
    response = _column(row, response_in, where, "response")
    if not isinstance(response, str):
        raise TranscriptError(f"{where}: {response_in}: expected text, found {_short(response)}")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise TranscriptError(f"{where}: {prompt_in}: expected non-empty text, found {_short(prompt)}")
        before: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    else:
        before = _messages(prompt, f"{where}: {prompt_in}")
    system = row.get(columns.system or SYSTEM)
    if columns.system is not None and columns.system not in row:
        raise TranscriptError(f"{where}: no column {columns.system!r}")
    if system:
        if not isinstance(system, str):
            raise TranscriptError(
                f"{where}: {columns.system or SYSTEM}: expected text, found {_short(system)}"
            )
        before = [{"role": "system", "content": system}, *before]
    return [*before, {"role": "assistant", "content": response}]


def _column(row: Mapping[str, Any], name: str, where: str, option: str) -> Any:
    if name not in row:
        there = ", ".join(map(str, row)) or "none"
        raise TranscriptError(f"{where}: no column {name!r}; there is: {there} (say which with --{option})")
    return row[name]


def _messages(found: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(found, str):  # a field of a CSV file
        found = _parsed(found, where)
    if not isinstance(found, list) or not found:
        raise TranscriptError(f"{where}: expected a list of messages, not empty, found {_short(found)}")
    for i, message in enumerate(found):
        fields = [message.get(name) if isinstance(message, dict) else None for name in ("role", "content")]
        if not all(isinstance(field, str) for field in fields) or not fields[0]:
            raise TranscriptError(
                f"{where}[{i}]: expected an object with the texts `role` and `content`, "
                f"found {_short(message)}"
            )
    return found


def _number(value: Any, where: str) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise TranscriptError(f"{where}: expected a finite number, or nothing, found {_short(value)}")
    return number


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
    except Exception as error:
        # By name: templates speak through jinja2, which is transformers' dependency and none of ours.
        if not isinstance(error, ValueError) and not type(error).__module__.startswith("jinja2"):
            raise
        raise TranscriptError(f"{where}: {error}") from error


def _short(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False, default=repr)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
