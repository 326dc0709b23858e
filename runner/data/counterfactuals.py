"""Counterfactual data: rows of a base, a source and a label, as text and as token ids, and their split."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from subvene.runner.data.declared_rows import declared_rows
from subvene.runner.data.facts import continuation
from subvene.runner.data.text import TextError, prompt_ids, reply_ids
from subvene.specs import SubveneError
from subvene.specs.counterfactuals import CounterfactualsSpec, GroupSplitSpec
from subvene.specs.rows import Row, given_rows, short


class CounterfactualError(SubveneError, ValueError):
    """A row is no counterfactual, or rows cannot be split as asked."""


@dataclass(frozen=True)
class Counterfactual:
    """A row of the data.

    Attributes:
        where: it stands, for people.
        base: the text that a state is put into.
        source: the text whose state that is.
        label: how the base is to go on then.
        base_label: how the base goes on by itself; None where the row does not say.
        source_label: how the source goes on by itself; None where the row does not say.
        columns: all columns of the row, which position rules and splits name.
    """

    where: str
    base: str
    source: str
    label: str
    base_label: str | None
    source_label: str | None
    columns: Mapping[str, Any]

    @property
    def key(self) -> str:
        """What items call it."""
        said = [self.base, self.source, self.label]
        return hashlib.sha256(json.dumps(said, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class CounterfactualTokens:
    """A row as a model reads it.

    Attributes:
        row: as it was given.
        base: token ids.
        source: token ids.
        label: the first token of the label behind the base.
        base_label: that of the base's own answer; None where the row does not say.
        source_label: that of the source's own answer, behind the source; None where the row does not say.
    """

    row: Counterfactual
    base: tuple[int, ...]
    source: tuple[int, ...]
    label: int
    base_label: int | None = None
    source_label: int | None = None


@dataclass(frozen=True)
class Sides:
    """Which rows are for what.

    Attributes:
        train: indices of rows that are trained on.
        test: indices of rows that are held out.
        straddling: indices of rows with values of both sides, which are in neither.
        held_out: the values that are held out.
    """

    train: tuple[int, ...]
    test: tuple[int, ...]
    straddling: tuple[int, ...]
    held_out: tuple[str, ...]


def read_counterfactuals(spec: CounterfactualsSpec, folder: Path) -> list[Counterfactual]:
    """The rows that a spec names.

    Args:
        spec: where they are.
        folder: what a relative file is looked for in.

    Raises:
        CounterfactualError: there is no such file or data set, or a row is no counterfactual.
    """
    rows = declared_rows(spec, folder, CounterfactualError)
    return counterfactuals_of(rows, spec, str(spec.dataset or spec.file))


def given_counterfactuals(spec: CounterfactualsSpec, data: Any) -> list[Counterfactual]:
    """Those that a caller hands over: rows in any form that `given_rows` takes, or counterfactuals."""
    if isinstance(data, Sequence) and data and all(isinstance(one, Counterfactual) for one in data):
        return list(data)
    return counterfactuals_of(given_rows(data, CounterfactualError), spec, "data")


def counterfactuals_of(rows: Iterable[Row], spec: CounterfactualsSpec, source: str) -> list[Counterfactual]:
    """Counterfactuals of rows.

    Raises:
        CounterfactualError: naming the row and the column, or there are no rows.
    """
    found = [_row(row, where, spec) for where, row in islice(rows, spec.limit)]
    if not found:
        raise CounterfactualError(f"{source}: holds no row")
    _refuse_repeated(found)
    return found


def _refuse_repeated(rows: Sequence[Counterfactual]) -> None:
    first: dict[str, Counterfactual] = {}
    for row in rows:
        if (before := first.setdefault(row.key, row)) is not row:
            raise CounterfactualError(
                f"{row.where}: has the base, source and label of {before.where}; counted twice, a row makes "
                "intervals too narrow, and may stand on both sides of a split. Leave one of them out"
            )


def counterfactuals_sha256(rows: Sequence[Counterfactual]) -> str:
    """A hash of all that the rows say, and of their order."""
    said = [
        [row.base, row.source, row.label, row.base_label, row.source_label, dict(row.columns)] for row in rows
    ]
    text = json.dumps(said, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def counterfactual_tokens(
    rows: Sequence[Counterfactual], spec: CounterfactualsSpec, tokenizer: Any
) -> list[CounterfactualTokens]:
    """The rows as token ids.

    Raises:
        TextError: an answer has no token of its own behind its text.
        CounterfactualError: two answers, of one row or of two, are other texts that begin with one token.
    """
    found = [_tokens(row, spec, tokenizer) for row in rows]
    said: dict[int, tuple[str, str]] = {}
    for one in found:
        for name in ("label", "base_label", "source_label"):
            text, token = getattr(one.row, name), getattr(one, name)
            if text is None:
                continue
            other, where = said.setdefault(token, (text.strip(), one.row.where))
            if text.strip() != other:
                raise CounterfactualError(
                    f"{one.row.where}: {name}: {text!r} begins with the same token as {other!r} ({where}), "
                    "and the first token is what is measured; give answers that begin otherwise, or one text"
                )
    return found


def sides_of(rows: Sequence[Counterfactual], spec: GroupSplitSpec, seed: int) -> Sides:
    """Which rows are trained on and which are held out.

    Raises:
        CounterfactualError: a row lacks a column, or a side has no row.
    """
    values = [tuple(_value(row, column) for column in spec.by) for row in rows]
    every = sorted({value for row in values for value in row})
    # Decided by the values alone: the order of the rows changes nothing.
    drawn = random.Random(f"split {seed}").sample(every, k=len(every))
    held_out = frozenset(drawn[: max(1, round(spec.test * len(every)))])
    sides: tuple[list[int], list[int], list[int]] = ([], [], [])
    for i, row in enumerate(values):
        count = len(held_out & set(row))
        sides[0 if not count else 1 if count == len(set(row)) else 2].append(i)
    train, test, straddling = sides
    for name, side in (("trained on", train), ("held out", test)):
        if not side:
            raise CounterfactualError(
                f"split: {len(held_out)} of {len(every)} values of {', '.join(spec.by)} are held out, and no "
                f"row is {name} ({len(straddling)} of {len(rows)} have values of both sides); give more "
                "rows, or another share `test`"
            )
    return Sides(tuple(train), tuple(test), tuple(straddling), tuple(sorted(held_out)))


def _row(row: Any, where: str, spec: CounterfactualsSpec) -> Counterfactual:
    if not isinstance(row, Mapping):
        raise CounterfactualError(f"{where}: expected a row with columns, found {short(row)}")
    texts = {name: _text(row, where, getattr(spec, name)) for name in ("base", "source", "label")}
    own: dict[str, str | None] = {}
    for name in ("base_label", "source_label"):
        column = getattr(spec, name)
        if name in spec.model_fields_set or row.get(column) not in (None, ""):
            own[name] = _text(row, where, column)
        elif column not in row and (meant := _misspelt(column, row, spec)):
            raise CounterfactualError(
                f"{where}: the column {meant!r} is read by nobody; if it is meant as {column!r}, rename it "
                f"or say `{name}: {meant}` beside the file; if not, give it a name that is less like it"
            )
        else:
            own[name] = None
    return Counterfactual(
        where, **texts, base_label=own["base_label"], source_label=own["source_label"], columns=dict(row)
    )


def _misspelt(column: str, row: Mapping[str, Any], spec: CounterfactualsSpec) -> str | None:
    """A column that is called almost as an optional one, and is none of those that are read."""
    read = {getattr(spec, name) for name in ("base", "source", "label", "base_label", "source_label")}
    close = get_close_matches(column, [str(name) for name in row if name not in read], n=1, cutoff=0.85)
    return close[0] if close else None


def _text(row: Mapping[str, Any], where: str, column: str) -> str:
    if column not in row:
        listed = ", ".join(map(str, row)) or "none"
        raise CounterfactualError(f"{where}: expected a column {column!r}; the columns are: {listed}")
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise CounterfactualError(f"{where}: {column}: expected non-empty text, found {short(value)}")
    return value


def _value(row: Counterfactual, column: str) -> str:
    if column not in row.columns or row.columns[column] in (None, ""):
        listed = ", ".join(map(str, row.columns))
        raise CounterfactualError(
            f"{row.where}: split.by: expected a column {column!r} with a value; the columns are: {listed}"
        )
    return str(row.columns[column])


def _tokens(row: Counterfactual, spec: CounterfactualsSpec, tokenizer: Any) -> CounterfactualTokens:
    ids = {name: tuple(prompt_ids(tokenizer, getattr(row, name), chat=spec.chat)) for name in _TEXTS}

    def answer(name: str, behind: str) -> int | None:
        text = getattr(row, name)
        if text is None:
            return None
        where = f"{row.where}: {name}"
        if spec.chat:
            before, reply = reply_ids(tokenizer, list(ids[behind]), text)
            if tuple(before) != ids[behind] or not reply:
                raise TextError(f"{where}: behind the chat's prompt {text!r} does not stand by itself")
            return int(reply[0])
        return continuation(tokenizer, getattr(row, behind), ids[behind], text, where)

    label, base_label = answer("label", "base"), answer("base_label", "base")
    if label is None:
        raise CounterfactualError(f"{row.where}: has no label")
    if label == base_label and str(row.label).strip() != str(row.base_label).strip():
        raise CounterfactualError(
            f"{row.where}: {row.label!r} and {row.base_label!r} begin with the same token; give labels that "
            "begin otherwise"
        )
    return CounterfactualTokens(
        row, ids["base"], ids["source"], label, base_label, answer("source_label", "source")
    )


_TEXTS = ("base", "source")
