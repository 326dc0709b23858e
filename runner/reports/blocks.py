"""What a report shows, before it is HTML, Markdown, LaTeX or a terminal's: each table once, as a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from subvene.runner.experiments.results import Metric

NOTHING = "–"
"""What stands where nothing was measured."""


@dataclass(frozen=True)
class Mean:
    """A mean over cells, fewer perhaps than its row has.

    Attributes:
        metric: None where it was not measured.
        cells: of the row.
    """

    metric: Metric | None
    cells: int


@dataclass(frozen=True)
class Over:
    """What a cell says, and what belongs to that: its interval, its range; below it where there is room."""

    main: str
    detail: str = ""


Cell: TypeAlias = str | int | float | Metric | Mean | Over | None
"""A text, or the value itself, which its column writes in words."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        head: in small letters, as far as it is no name.
        form: how a number is written.
        better: where its numbers are better.
    """

    head: str
    form: str = ".3f"
    better: Literal["", "↑", "↓"] = ""

    @property
    def titled(self) -> str:
        """The head for a page: with a capital, and where it is better."""
        # A letter is a symbol, as p, also before what stands behind it: P (Holm) would be another one.
        symbol = len(self.head.split(" ", 1)[0]) == 1
        head = self.head if symbol else f"{self.head[:1].upper()}{self.head[1:]}"
        return f"{head} {self.better}".rstrip()

    def parts(self, cell: Cell) -> Over:
        """A cell in words: what it says, and what belongs to that."""
        if isinstance(cell, Over):
            return cell
        if isinstance(cell, Mean):
            metric, said = cell.metric, self.parts(cell.metric)
            if metric is None or metric.n == cell.cells:
                return said
            return Over(said.main, f"{said.detail} n={metric.n}".lstrip())
        if isinstance(cell, Metric):
            return Over(self._word(cell.mean), self._spread(cell))
        return Over(self._word(cell))

    def _spread(self, metric: Metric) -> str:
        """Its interval, or the deviation of what it is a mean of where there is none."""
        if metric.low is not None and metric.high is not None:
            return f"[{self._word(metric.low)}, {self._word(metric.high)}]"
        return "" if metric.sd is None else f"± {self._word(metric.sd)}"

    def _word(self, cell: str | int | float | None) -> str:
        if isinstance(cell, float):
            return format(cell, self.form).replace("-", "−")
        return NOTHING if cell is None else str(cell)


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows.

    Attributes:
        columns: each with a head.
        rows: each with a cell a column.
        title: what it shows; empty where it needs no words.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""

    @classmethod
    def of(cls, columns: Sequence[str | Column], rows: Sequence[Sequence[Cell]], title: str = "") -> Table:
        """A table of columns that may be named only."""
        named = tuple(Column(one) if isinstance(one, str) else one for one in columns)
        return cls(named, tuple(map(tuple, rows)), title)

    def texts(self) -> list[list[str]]:
        """Its cells, each in one line."""
        return [[f"{said.main} {said.detail}".rstrip() for said in row] for row in self.parts()]

    def parts(self) -> list[list[Over]]:
        """Its cells in words.

        Raises:
            ValueError: a row has another number of cells than the table has columns.
        """
        return [
            [column.parts(cell) for column, cell in zip(self.columns, row, strict=True)] for row in self.rows
        ]


@dataclass(frozen=True)
class Items:
    """What must be known to read a table, a line each."""

    lines: tuple[str, ...]


Document: TypeAlias = Sequence[Table | Items]
"""What a file of tables holds, in its order."""
