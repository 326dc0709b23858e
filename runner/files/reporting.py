"""What trackers are told while it happens: curves of trainings, measures of a sweep's cells.

The trackers are accelerate's. As with progress, whoever trains or measures says what there is to tell, and
whoever runs it says to whom (`reporting`); where nobody does, nothing is told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from subvene.runner.files.json_value import Json
from subvene.specs.trackers import Tracker

Log: TypeAlias = Callable[[Mapping[str, float], int], None]
"""Called with values by name, and the step that they are of."""
Setting: TypeAlias = str | bool | int | float


@dataclass(frozen=True)
class Reporting:
    """To whom is told.

    Attributes:
        trackers: by name.
        project: under which runs are gathered: TensorBoard's folder, W&B's and Trackio's project, MLflow's
            experiment.
        folder: where TensorBoard's files are written; the others have places of their own (`WANDB_DIR`,
            `MLFLOW_TRACKING_URI`, `TRACKIO_DIR`).
    """

    trackers: Sequence[Tracker]
    project: str
    folder: Path


_CURRENT: ContextVar[Reporting | None] = ContextVar("reporting", default=None)
# What every tracker takes in the name of a measure.
_UNNAMEABLE = re.compile(r"[^\w\-. /]")


@contextmanager
def reporting(trackers: Sequence[Tracker], project: str, folder: Path) -> Iterator[None]:
    """Have what is reported inside told to trackers; to none, where there are none."""
    token = _CURRENT.set(Reporting(trackers, project, folder) if trackers else None)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def is_reporting() -> bool:
    """Whether anybody is told."""
    return _CURRENT.get() is not None


@contextmanager
def curves(run: str, settings: Mapping[str, Json], *, done: int = 0) -> Iterator[Log]:
    """A run of its own in every tracker, for values by step.

    Args:
        run: what it is called.
        settings: what is known of it before.
        done: so many steps stand; above 0 where a training is taken up.

    Yields:
        What logs. A run begins with the first values, so that one without any leaves nothing.
    """
    to = _CURRENT.get()
    if to is None:
        yield lambda values, step: None
        return
    with ExitStack() as stack:
        opened: list[Any] = []

        def log(values: Mapping[str, float], step: int) -> None:
            if not values:
                return
            if not opened:
                opened.extend(_opened(to, run, stack, done))
                for tracker in opened:
                    tracker.store_init_configuration(_plain(settings))
            for tracker in opened:
                tracker.log(_named(values), step=step)

        yield log


def report_cell(run: str, settings: Mapping[str, Json], measures: Mapping[str, float]) -> None:
    """Tell trackers what was measured of one cell, as a run of its own with the cell's settings.

    Args:
        run: what it is called.
        settings: by which it differs from other cells.
        measures: by name.
    """
    to = _CURRENT.get()
    if to is None or not measures:
        return
    with ExitStack() as stack:
        for tracker in _opened(to, run, stack, 0):
            if tracker.name == "tensorboard":
                # Settings and measures in one record: what TensorBoard's table of hyperparameters is made of.
                tracker.tracker.add_hparams(_plain(settings), _named(measures), run_name=".")
                continue
            tracker.store_init_configuration(_plain(settings))
            tracker.log(_named(measures), step=0)


def _opened(to: Reporting, run: str, stack: ExitStack, done: int) -> list[Any]:
    """A begun run of each tracker, which is finished when the stack is left."""
    from accelerate.state import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # accelerate's trackers log through its logger, which asks for it
    opened = []
    for name in to.trackers:
        tracker = LOGGER_TYPE_TO_CLASS[name](*_place(name, to, run), **_options(name, run, done))
        tracker.start()
        stack.callback(tracker.finish)
        opened.append(tracker)
    return opened


def _place(name: Tracker, to: Reporting, run: str) -> tuple[str, ...]:
    if name == "tensorboard":
        return run.replace("/", "_"), str(to.folder)
    return (to.project,)


def _options(name: Tracker, run: str, done: int) -> dict[str, Json]:
    if name == "tensorboard":
        # What a killed process wrote of the steps that are done again is not shown.
        return {"purge_step": done + 1} if done else {}
    return {"run_name" if name == "mlflow" else "name": run}


def _plain(settings: Mapping[str, Json]) -> dict[str, Setting]:
    """The settings that there are, what is no number and no text as text."""
    return {
        _UNNAMEABLE.sub("_", name): value if isinstance(value, str | bool | int | float) else str(value)
        for name, value in settings.items()
        if value is not None
    }


def _named(values: Mapping[str, float]) -> dict[str, float]:
    return {_UNNAMEABLE.sub("_", name): value for name, value in values.items()}
