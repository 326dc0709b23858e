"""Cells of a CSV file that a spreadsheet shows as the text they are."""

from __future__ import annotations

import re
from typing import Any

_BEGINS_A_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def as_cell(value: Any) -> Any:
    """`value`, with an apostrophe before a text that a spreadsheet would run as a formula.

    A number stays one, as text too. The apostrophe is what spreadsheets themselves put before such a text; a
    program that reads the file has it as the cell's first character.
    """
    if not isinstance(value, str) or not value.startswith(_BEGINS_A_FORMULA) or _NUMBER.fullmatch(value):
        return value
    return f"'{value}"
