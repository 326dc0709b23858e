"""Tables of many numbers: as many parts as they need for nothing to be cut at the terminal's width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from subvene.runner.files.printable import on_line
from subvene.runner.reports.blocks import Over, Table

if TYPE_CHECKING:
    from rich.console import Console

_BETWEEN = 2
"""Columns of the terminal between two of a table."""


def print_wide(
    console: Console, first: str, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]
) -> None:
    """Print a table; where its columns do not fit side by side, in parts below each other.

    Args:
        console: where to.
        first: head of the column of names, which every part has; a name longer than half of the terminal is
            folded, never cut.
        heads: of the other columns.
        rows: each a name and a cell for every head; a cell may have several lines.
    """
    from rich.table import Table
    from rich.text import Text

    named = min(_width(first, *(name for name, _ in rows)), console.width // 2)
    widths = [_width(head, *(cells[i] for _, cells in rows)) for i, head in enumerate(heads)]
    for part in _parts(widths, console.width - named):
        table = Table(show_edge=False, pad_edge=False)
        table.add_column(first, overflow="fold", max_width=named, min_width=named)
        for i in part:
            table.add_column(heads[i], justify="right", no_wrap=True)
        for name, cells in rows:
            table.add_row(Text(name), *(Text(cells[i]) for i in part))
        console.print()
        console.print(table)


def print_table(console: Console, table: Table) -> None:
    """Print a block's table, spreads below their means.

    Args:
        console: where to.
        table: whose first column names its rows.
    """
    lines = [[_in_lines(said) for said in row] for row in table.parts()]
    rows = [(first, rest) for first, *rest in lines]
    heads = [column.head for column in table.columns]
    if table.title:
        console.print(table.title, soft_wrap=True, markup=False)
    print_wide(console, heads[0], heads[1:], rows)


def _in_lines(said: Over) -> str:
    """A cell in narrow lines: what it says, then each bound of what belongs to that."""
    detail = on_line(said.detail).replace(" to ", "\nto ").replace(", ", ",\n")
    return "\n".join(filter(None, (on_line(said.main), detail)))


def _width(*texts: str) -> int:
    return max(len(line) for text in texts for line in text.split("\n"))


def _parts(widths: Sequence[int], room: int) -> list[list[int]]:
    """The columns in runs that fit into the room, each of at least one column."""
    parts: list[list[int]] = []
    left = 0
    for i, width in enumerate(widths):
        # A rule of the table stands between two columns, beside the space.
        needed = width + _BETWEEN + 1
        if not parts or needed > left:
            parts.append([])
            left = room
        parts[-1].append(i)
        left -= needed
    return parts
