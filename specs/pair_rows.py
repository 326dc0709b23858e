"""Rows as contrast pairs: positive and negative texts after a prompt, or preferences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from subvene.specs.columns import Meaning, Taken, Used, asked, messages_of, take, text_of
from subvene.specs.pairs import ContrastTexts, PairColumns, TextPair
from subvene.specs.rows import Fail, Row, RowsError, given_rows, short, tuples_named

_WANTED: frozenset[Meaning] = frozenset({"prompt", "input", "system", "chosen", "rejected"})
_SIDES: dict[Meaning, str] = {"chosen": "positive", "rejected": "negative"}
_TUPLE = tuple(_SIDES.values())
_SHOWN = 2
_FORM = (
    'A pair is a row {"positive": "…", "negative": "…"}, with "prompt": "…" if both texts are answers, and '
    '"system": "…" before that.'
)
_SAYING = {
    meaning: f"`columns: {{{name}: NAME}}`"
    for meaning, name in (dict.fromkeys(_WANTED, "prompt") | _SIDES | {"system": "system"}).items()
}
"""How a spec says which column has a meaning."""


class ReadPairs(ContrastTexts):
    """Pairs that were read from rows, and which columns those were read from."""

    _used: Used = Used()

    @property
    def used(self) -> Used:
        """Which columns were read, and which were not."""
        return self._used


def pairs_of(
    rows: Iterable[Row], source: str, fail: Fail = RowsError, *, columns: PairColumns | None = None
) -> ReadPairs:
    """Pairs of rows, each with where it stands.

    A row has `positive` and `negative` (or `chosen` and `rejected`) and, if the texts are replies, `prompt`
    and perhaps `system`.

    Args:
        rows: the rows.
        source: what they are called as a whole.
        fail: makes an error.
        columns: the columns that are meant, where they have other names.

    Raises:
        RowsError: or what `fail` makes: a row is none, or there are no rows; with the first rows as they are.
    """
    used, rows = Used(), list(rows)
    named = _named(columns)

    def with_rows(message: str) -> Exception:
        """The error, with what is wanted beside what is there."""
        shown = "".join(f"\n  {where}: {short(row)}" for where, row in rows[:_SHOWN])
        return fail(f"{message}\n{_FORM}\nThe first rows are:{shown}")

    texts = tuple(_pair(row, where, used, with_rows, named) for where, row in rows)
    if not texts:
        raise fail(f"{source}: holds no pair")
    pairs = ReadPairs(texts=texts)
    pairs._used = used
    return pairs


def given_pairs(data: Any, fail: Fail = RowsError, *, columns: PairColumns | None = None) -> ReadPairs:
    """Pairs that somebody hands over: rows, or tuples of a positive and a negative text.

    Args:
        data: what was handed over.
        fail: makes an error.
        columns: the columns that are meant, where they have other names.

    Raises:
        RowsError: or what `fail` makes: a row is none, or there are no rows.
    """
    return pairs_of(given_rows(tuples_named(data, _TUPLE, fail), fail), "data", fail, columns=columns)


def _named(columns: PairColumns | None) -> dict[Meaning, str | None]:
    """Meaning → the column that is said to have it."""
    if columns is None:
        return {}
    return {
        "chosen": columns.positive,
        "rejected": columns.negative,
        "prompt": columns.prompt,
        "system": columns.system,
    }


def _pair(
    row: Any, where: str, used: Used, fail: Fail, named: Mapping[Meaning, str | None] | None = None
) -> TextPair:
    taken = take(row, where, _WANTED, chosen=named, saying=_SAYING, fail=fail)
    before: list[dict[str, Any]] = []
    sides = []
    for meaning, name in _SIDES.items():
        if meaning not in taken:
            raise fail(
                f"{where}: expected a column `{name}` (or `{meaning}`; another name is said with "
                f"`columns: {{{name}: NAME}}`); the columns are: {', '.join(map(str, row)) or 'none'}"
            )
        turns, text = _side(taken, meaning, where, fail)
        sides.append((turns, text))
    if sides[0][0] != sides[1][0]:
        raise fail(f"{where}: the positive and the negative text answer different prompts")
    if "prompt" in taken:
        before = asked(taken, where, fail)
    elif sides[0][0]:
        before = sides[0][0]
    elif taken.keys() & {"input", "system"}:
        column = taken.columns.get("system") or taken.columns["input"]
        raise fail(f"{where}: {column}: belongs to a prompt, and there is none")
    used.note(taken)
    told, turn = _prompt(before, where, fail)
    return TextPair(prompt=turn, system=told, positive=sides[0][1], negative=sides[1][1])


def _side(taken: Taken, meaning: Meaning, where: str, fail: Fail) -> tuple[list[dict[str, Any]], str]:
    """What stands before a text in its own column, and the text."""
    value, place = taken[meaning], f"{where}: {taken.columns[meaning]}"
    if not isinstance(value, list | dict):
        return [], text_of(value, place, fail)
    *before, last = messages_of([value] if isinstance(value, dict) else value, place, fail)
    if last["role"] != "assistant":
        raise fail(f"{place}: expected an assistant's answer as the last message")
    return before, text_of(last["content"], place, fail)


def _prompt(before: list[dict[str, Any]], where: str, fail: Fail) -> tuple[str | None, str | None]:
    """System prompt and user's turn of a pair, which has no more than these."""
    roles = [message["role"] for message in before]
    if roles not in ([], ["user"], ["system", "user"]):
        raise fail(
            f"{where}: the prompt is a conversation ({', '.join(roles)}), and a pair has one user's turn, "
            "with a system prompt perhaps"
        )
    texts = [text_of(message["content"], f"{where}: the prompt", fail) for message in before]
    return next(chain(texts[:-1], [None])), next(chain(texts[-1:], [None]))
