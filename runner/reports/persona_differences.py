"""Differences of conditions from the first of each trait, as a table, files and a section."""

from __future__ import annotations

from subvene.runner.experiments.persona.differences import differences_of
from subvene.runner.experiments.results import Results
from subvene.runner.files.csv_file import csv_text
from subvene.runner.reports.blocks import Cell, Column, Document, Items, Table
from subvene.runner.reports.documents import document_files
from subvene.runner.reports.markup import Html, element, join, shown

_COLUMNS = (
    Column("trait"),
    Column("condition"),
    Column("measure"),
    Column("Δ", ".2f"),
    Column("low", ".2f"),
    Column("high", ".2f"),
    Column("p", ".4f"),
    Column("p (Holm)", ".4f"),
    Column("n"),
)
SAID = (
    "Δ: mean difference from the trait's first condition, paired by question (responses to one question are "
    "averaged), with its 95% t interval; p of the paired t-test, two-sided, and corrected over all rows of "
    "the measure (Holm); n questions."
)


def differences_files(results: Results) -> dict[str, str]:
    """A line for each trait, condition and measure, for programs and for readers, by file name."""
    found = differences_of(results.conditions)
    if not found:
        return {}
    return document_files("differences", _document(results), results.kind) | {
        "differences.csv": csv_text([gap.model_dump() for gap in found])
    }


def _document(results: Results) -> Document:
    rows: list[list[Cell]] = [
        [g.trait, g.condition, g.measure, g.value, g.low, g.high, g.p, g.p_holm, g.n]
        for g in differences_of(results.conditions)
    ]
    return [Table.of(_COLUMNS, rows), Items((SAID,))] if rows else []


def differences(results: Results) -> Html | None:
    """The section of the page; None where nothing can be compared."""
    tables = [shown(block) for block in _document(results) if isinstance(block, Table)]
    return join([element("p", SAID), *tables]) if tables else None
