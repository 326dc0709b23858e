"""CSV as a spreadsheet opens it: text stays text, numbers stay numbers."""

from __future__ import annotations

import ast
import csv
import io
from typing import Any

import pandas as pd
import pytest
from checkout import ROOT

from subvene.runner.files.csv_file import CsvWriter, as_data, csv_text

FORMULAS = (
    '=HYPERLINK("http://evil","x")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    "  =1+1",
    "＝1+1",
    "－1+1",
    "-inf",
    "--1",
    "+",
    "-٣",
)


@pytest.mark.parametrize("text", FORMULAS)
def test_text_that_begins_like_a_formula_is_marked_as_text(text: str) -> None:
    assert as_data(text) == f"'{text}"


@pytest.mark.parametrize(
    "cell", ["-1.5", "+3", "-1e-05", "-.5", "1", "a=b", "", "'=1", -1.5, float("-inf"), None, -3]
)
def test_numbers_and_other_text_are_as_they_were(cell: Any) -> None:
    assert as_data(cell) is cell


def test_a_table_of_both() -> None:
    lines = [{"=name": text, "value": -0.25, "said": "-0.5"} for text in FORMULAS]
    rows = list(csv.reader(io.StringIO(csv_text(lines), newline="")))
    assert rows[0] == ["'=name", "value", "said"]
    assert [row[0] for row in rows[1:]] == [f"'{text}" for text in FORMULAS]
    read = pd.read_csv(io.StringIO(csv_text(lines), newline=""))
    assert read["value"].eq(-0.25).all()
    assert read["said"].eq(-0.5).all()


def test_lines_of_other_columns_are_no_table() -> None:
    with pytest.raises(ValueError, match="no column for b"):
        csv_text([{"a": 1, "b": 2}], ["a"])


def test_rows() -> None:
    stream = io.StringIO(newline="")
    CsvWriter(stream).writerow(["=1", -1.0, "-1", "a,b"])
    assert stream.getvalue() == '\'=1,-1.0,-1,"a,b"\r\n'


def test_nothing_else_writes_csv() -> None:
    """Whoever writes a table does it through the one writer that knows spreadsheets."""
    found = {
        str(path.relative_to(ROOT))
        for path in ROOT.glob("runner/**/*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and (ast.unparse(node) in ("csv.writer", "csv.DictWriter") or node.attr == "to_csv")
    }
    assert found == {"runner/files/csv_file.py"}
