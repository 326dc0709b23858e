"""CSV that a spreadsheet opens as what it says: text is never a formula, and numbers are numbers."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
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
