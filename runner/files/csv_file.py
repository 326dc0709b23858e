"""CSV that a spreadsheet opens as what it says: text is never a formula, and numbers are numbers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

# What Excel, LibreOffice and Google Sheets read as the beginning of a formula: in full width too, and with a
# tab or a line end before it.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class CsvWriter:
    """Python's writer, over cells that no spreadsheet takes for a formula.

    Args:
        stream: opened with `newline=""`.
        **options: as `csv.writer` takes them.
    """

    def __init__(self, stream: IO[Any], **options: Any) -> None:
        self._writer = csv.writer(stream, **options)

    def writerow(self, cells: Iterable[Any]) -> None:
        """Write one row."""
        self._writer.writerow([as_data(cell) for cell in cells])


def as_data(cell: Any) -> Any:
    """A cell with an apostrophe before text that a spreadsheet would compute; a number is as it was.

    An apostrophe is how spreadsheets mark text (OWASP, "CSV Injection").
    """
    if not isinstance(cell, str) or not cell.lstrip(" ").startswith(_FORMULA) or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}"


def csv_text(lines: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None) -> str:
    """Mappings as CSV, without formulas.

    Args:
        lines: one a row.
        columns: in their order; left out: what the lines have, in the order in which it first comes.
    """
    if columns is None:
        columns = list(dict.fromkeys(name for line in lines for name in line))
    # Python's writer leaves a text with a bare carriage return unquoted, and its own reader refuses that.
    bare = any("\r" in value for line in lines for value in line.values() if isinstance(value, str))
    stream = io.StringIO()
    quoting = csv.QUOTE_NONNUMERIC if bare else csv.QUOTE_MINIMAL
    writer = CsvWriter(stream, lineterminator="\n", quoting=quoting)
    writer.writerow(columns)
    for line in lines:
        if stray := [name for name in line if name not in columns]:
            raise ValueError(f"no column for {', '.join(stray)}")
        writer.writerow([line.get(name, "") for name in columns])
    return stream.getvalue()
