"""What a spreadsheet would run as a formula is text in every CSV file."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from subvene.runner.csv_file import as_data
from subvene.runner.report.tables import csv_text

FORMULAS = [
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    '=HYPERLINK("http://x")',
    "-",
    " =1",
    "＝1",
]
PLAIN = ["", "a", "-1.5", "+2", "-.5", "-1e-05", "1-2", "a=b", "−3", 0, -1.5, None, True]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_text(text: str) -> None:
    assert as_data(text) == f"'{text}"
    (line,) = csv.DictReader(io.StringIO(csv_text([{text: text}]), newline=""))
    assert line == {f"'{text}": f"'{text}"}


@pytest.mark.parametrize("value", PLAIN)
def test_what_is_none_stays(value: object) -> None:
    assert as_data(value) == value


def test_every_csv_that_is_written_goes_through_it() -> None:
    """`csv_file` alone knows the writers of Python."""
    runner = Path(__file__).parents[2] / "runner"
    for file in runner.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if "csv.writer(" in text or "csv.DictWriter(" in text:
            assert file.name == "csv_file.py", file
