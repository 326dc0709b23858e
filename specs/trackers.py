"""Trackers: where trainings and sweeps are looked at while they run, beside the run's own folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias, get_args

from annotated_types import MinLen
from pydantic import AfterValidator

from subvene.specs._fields import different
from subvene.specs._flaws import Expect, Shaped, one_of

Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]
TRACKERS: tuple[Tracker, ...] = get_args(Tracker)

_ONE = Expect(one_of(TRACKERS))
_MANY = "a non-empty list of different trackers"
_EITHER = f"{one_of(TRACKERS)}, or a list of such"
ReportTo: TypeAlias = Annotated[
    Annotated[Tracker, _ONE]
    | Annotated[tuple[Annotated[Tracker, _ONE], ...], MinLen(1), AfterValidator(different), Expect(_MANY)],
    Shaped(lambda value: 1 if isinstance(value, list | tuple) else 0, _EITHER),
]


def trackers_of(report_to: Tracker | tuple[Tracker, ...] | None) -> tuple[Tracker, ...]:
    """Returns the trackers that a field names."""
    if report_to is None:
        return ()
    return report_to if isinstance(report_to, tuple) else (report_to,)


def not_installed(trackers: tuple[Tracker, ...]) -> Iterator[tuple[int, str]]:
    """Yields the places of those that this machine does not have, with what to do; none is imported."""
    for i, tracker in enumerate(trackers):
        # Each is a module of its own name.
        if importlib.util.find_spec(tracker) is None:
            yield i, f"an installed tracker (pip install {tracker})"
