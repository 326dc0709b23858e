"""Choosing a point on validation: one rule for every study."""

from __future__ import annotations

from collections.abc import Iterable

from subvene.runner.experiments.results import Point, Tried


def best_of(tried: Iterable[Tried]) -> Point | None:
    """The point with the largest value; None if none has one.

    Of equals it is the first: the order of the file decides, not the machine.
    """
    valued = [(one.value, one.point) for one in tried if one.value is not None]
    return max(valued, key=lambda pair: pair[0])[1] if valued else None
