"""What must share a forward pass, and how such units are put into passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Where the next sequence is shorter than this share of the longest, padding costs more than another pass.
_ALIKE = 0.85


@dataclass(frozen=True)
class Extent:
    """What a unit takes of a pass.

    Attributes:
        entry: the layer at which its pass may begin.
        sequences: how many it has.
        length: tokens of the longest.
    """

    entry: int
    sequences: int
    length: int


@dataclass(frozen=True)
class Unit:
    """Answers of one prompt that must share a pass, as both of a pair must.

    Attributes:
        experiment: whose edit acts on them.
        rows: of the answers.
        extent: what they take.
    """

    experiment: int
    rows: tuple[int, ...]
    extent: Extent


def planned(extents: Sequence[Extent], most: int, full: int) -> Iterator[list[int]]:
    """Indices of the units of each pass: those that begin at one layer and are of like length.

    The longest come first, so that too little memory shows early.

    Args:
        extents: of the units, in any order.
        most: tokens of a pass, padding included; a unit that takes more has one of its own.
        full: a pass of fewer tokens takes in units that could begin higher, or are much shorter.
    """
    order = sorted(range(len(extents)), key=lambda u: (extents[u].entry, -extents[u].length))
    pending: list[int] = []
    sequences = longest = 0
    for u in order:
        one = extents[u]
        width = max(longest, one.length)
        if pending:
            apart = one.entry != extents[pending[0]].entry or one.length < _ALIKE * longest
            too_many = (sequences + one.sequences) * width > most
            if too_many or (apart and sequences * longest >= full):
                yield pending
                pending, sequences, width = [], 0, one.length
        pending.append(u)
        sequences, longest = sequences + one.sequences, width
    if pending:
        yield pending
