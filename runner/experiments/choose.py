"""Choosing a point on validation: one rule for every study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from subvene.runner.edits.not_finite import NotFiniteError
from subvene.runner.experiments.results import Point, Tried
from subvene.specs import ChooseSpec, SubveneError


def best_of(tried: Iterable[Tried]) -> Point | None:
    """The point with the largest value; None if none has one.

    Of equals it is the first: the order of the file decides, not the machine.
    """
    valued = [(one.value, one.point) for one in tried if one.value is not None]
    return max(valued, key=lambda pair: pair[0])[1] if valued else None


def no_choice(name: str, choose: ChooseSpec, tried: Sequence[Tried]) -> SubveneError:
    """Why no point of a sweep can be taken: none stays finite, or none is high enough in what it must be."""
    floors = " and ".join(f"{metric} of at least {least:g}" for metric, least in choose.at_least.items())
    said = f"condition {name}: no point of its sweep stays finite" + (f" and has {floors}" if floors else "")
    said += " on the validation questions; "
    broken = [one.not_finite for one in tried if one.not_finite is not None]
    return NotFiniteError(said + broken[-1]) if broken else SubveneError(f"{said}none is high enough")
