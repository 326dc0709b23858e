"""Rows of data: of a file, or as somebody hands them over; each with where it stands, for people.

What the columns mean is the business of `columns`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from subvene.specs.errors import SubveneError
from subvene.specs.regular_file import read_bytes

Row = tuple[str, Any]
"""Where a row stands, and what it is: a mapping of columns, or whatever else stands there."""
Fail = Callable[[str], Exception]
"""Makes an error of a message: the reader's own class."""


class RowsError(SubveneError, ValueError):
    """Rows cannot be read; the message names the file, the line and the column."""


def file_rows(path: Path, fail: Fail = RowsError, *, hint: str = "") -> Iterator[Row]:
    """The rows of a file.

    Args:
        path: ends in .jsonl (a value a line), .json (a list) or .csv (below a header).
        fail: makes an error.
        hint: what stands behind the message that a file cannot be read.

    Raises:
        RowsError: or what `fail` makes: there is no such file, or it is not what its name says.
    """
    if path.suffix.lower() not in _READERS:
        raise fail(f"{path}: expected a file that ends in {', '.join(_READERS)}")
    return _READERS[path.suffix.lower()](path, file_text(path, fail, hint=hint), fail)


def file_text(path: Path, fail: Fail = RowsError, *, hint: str = "") -> str:
    """The text of a file in UTF-8; line ends are as they stand there."""
    try:
        # Bytes: csv reads line ends, those within quoted fields too, itself.
        return read_bytes(path).decode("utf-8-sig")
    except OSError as error:
        raise fail(f"{path}: cannot be read ({error.strerror}){hint}") from error
    except UnicodeDecodeError as error:
        raise fail(f"{path}: not UTF-8 text (byte {error.start}: {error.reason})") from error


def given_rows(data: Any, fail: Fail = RowsError) -> list[Row]:
    """The rows of a `datasets.Dataset`, a pandas DataFrame, a list of mappings, or a mapping of columns.

    Args:
        data: what was handed over.
        fail: makes an error.

    Raises:
        RowsError: or what `fail` makes: it is none of these, or holds no row.
    """
    if isinstance(data, Mapping):
        data = _of_columns(data, fail)
    elif hasattr(data, "to_dict") and hasattr(data, "iloc"):  # a DataFrame, without importing pandas
        # Its missing values are NaN, which is no text and no number that anybody gave.
        data = [
            {str(name): None if _is_missing(value) else value for name, value in row.items()}
            for row in data.to_dict("records")
        ]
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise fail(
            f"data: expected a datasets.Dataset, a DataFrame or a list of rows, found {type(data).__name__}"
        )
    rows = [(f"data: row {i}", row) for i, row in enumerate(data)]
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise fail(f"{where}: expected a row with columns, found {short(row)}")
    if not rows:
        raise fail("data: holds no row")
    return rows


def tuples_named(data: Any, names: Sequence[str], fail: Fail = RowsError) -> Any:
    """A list, an iterator or an array of tuples as rows with these columns; anything else as it is.

    Raises:
        RowsError: or what `fail` makes: a tuple has more or fewer values than there are columns.
    """
    if isinstance(data, Iterator):  # what `zip` and a generator give
        data = list(data)
    elif hasattr(data, "tolist") and not hasattr(data, "iloc"):  # an array, without importing numpy
        data = data.tolist()
    if not (isinstance(data, list | tuple) and data and all(isinstance(one, list | tuple) for one in data)):
        return data
    for i, one in enumerate(data):
        if len(one) != len(names):
            raise fail(f"data: row {i}: expected ({', '.join(names)}), found {short(list(one))}")
    return [dict(zip(names, one, strict=True)) for one in data]


def parsed(content: str, where: str, fail: Fail = RowsError) -> Any:
    """A JSON value."""
    try:
        return json.loads(content, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        line = f" line {error.lineno}," if error.lineno > 1 else ""
        raise fail(f"{where}: not JSON ({error.msg},{line} column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise fail(f"{where}: not JSON ({error})") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand there once; of two, the last would win in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"the key {next(name for name in names if names.count(name) > 1)!r} stands there twice"
        )
    return found


def short(value: Any) -> str:
    """A value for an error."""
    shown = json.dumps(value, ensure_ascii=False, default=repr)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"


def _of_columns(data: Mapping[str, Any], fail: Fail) -> list[dict[str, Any]]:
    if data and all(hasattr(one, "column_names") for one in data.values()):  # a DatasetDict
        raise fail(f"data: holds several splits; hand over one of them: {', '.join(map(repr, data))}")
    columns = {name: values for name, values in data.items() if isinstance(values, list | tuple)}
    if len(columns) < len(data) or len({len(values) for values in columns.values()}) != 1:
        raise fail("data: expected columns of equal length, each a list; one row stands in a list: [row]")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _is_missing(value: Any) -> bool:
    return isinstance(value, float) and value != value


def _lines(path: Path, content: str, fail: Fail) -> Iterator[Row]:
    # Not splitlines: JSON text may hold U+2028 as it is.
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", parsed(line, f"{path}:{number}", fail)


def _list(path: Path, content: str, fail: Fail) -> Iterator[Row]:
    rows = parsed(content, str(path), fail)
    if not isinstance(rows, list):
        raise fail(f"{path}: expected a list of rows, found {short(rows)}")
    for i, row in enumerate(rows):
        yield f"{path}: [{i}]", row


def _table(path: Path, content: str, fail: Fail) -> Iterator[Row]:
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
                    raise fail(f"{where}: there are two columns called {twice!r}")
                continue
            if len(fields) != len(header):
                raise fail(f"{where}: expected {len(header)} fields, as the header has, found {len(fields)}")
            yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise fail(f"{path}:{line}: not CSV ({error})") from error


_READERS: dict[str, Callable[[Path, str, Fail], Iterator[Row]]] = {
    ".jsonl": _lines,
    ".json": _list,
    ".csv": _table,
}
