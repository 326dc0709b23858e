"""What must share a forward pass, and how such units are put into passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """Rows that must share a pass: both answers of a pair, or one answer.

    Attributes:
        experiment: whose edit acts on them.
        rows: of the answers.
        entry: the layer at which a pass of them may begin.
        length: tokens of the longest.
    """

    experiment: int
    rows: tuple[int, ...]
    entry: int
    length: int


def planned(units: Sequence[Unit], most: int, full: int) -> Iterator[list[int]]:
    """Indices of the units of each pass: those that begin at one layer and are of like length.

    Args:
        units: in any order.
        most: tokens of a pass, padding included.
        full: a pass of fewer tokens takes in units that could begin higher.
    """
    order = sorted(range(len(units)), key=lambda u: (units[u].entry, -units[u].length))
    pending: list[int] = []
    rows = longest = 0
    for u in order:
        unit = units[u]
        width = max(longest, unit.length)
        tokens = (rows + len(unit.rows)) * width
        apart = unit.entry != units[pending[0]].entry if pending else False
        if pending and (tokens > most or (apart and rows * longest >= full)):
            yield pending
            pending, rows, width = [], 0, unit.length
        pending.append(u)
        rows, longest = rows + len(unit.rows), width
    if pending:
        yield pending
