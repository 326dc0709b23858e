"""What `subvene run` prints while units of work are done, and where it says the results are."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from subvene.runner.experiments.study import UnitTold


class UnitStory:
    """Tells a run of many units as it goes; use it as a context manager around the run.

    On a terminal there is one bar with the time remaining; elsewhere one line a unit, on standard error.

    Args:
        console: standard output, for the table.
        progress_console: standard error.
    """

    def __init__(self, console: Console, progress_console: Console) -> None:
        self.console, self.errors = console, progress_console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._total, self._count, self._fresh = 0, 0, 0
        self._begun = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, what: str, value: Any) -> None:
        """What `run_experiment` calls."""
        if what == "planned":
            self._planned(value)
        elif what == "power":
            for line in value:
                self.errors.print(line, markup=False, highlight=False)
        elif what == "unit":
            self._unit(value)
        elif what == "lost":
            self.errors.print(
                f"a worker was lost ({value['why']}); its unit is done again: {value['what']}", markup=False
            )
        elif what == "finished":
            if self._bar is not None:
                self._bar.stop()
            self._finished(value)

    def _planned(self, total: int) -> None:
        self._total = total
        self.errors.print(f"{total} units of work; what an earlier run has done is not done again")
        if not sys.stderr.isatty():
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._bar = Progress(
            *columns, TextColumn("{task.fields[left]}", markup=False), console=self.errors, transient=True
        )
        self._bar.start()
        self._task = self._bar.add_task("starting", total=total, left="")

    def _unit(self, unit: UnitTold) -> None:
        self._count += 1
        self._fresh += not unit["was_done"]
        place = self._place(unit)
        left = self._left()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._count, description=place, left=left)
        else:
            done = " (done before)" if unit["was_done"] else ""
            self.errors.print(
                f"[{self._count}/{self._total}] {place}{done}{left and f', {left}'}", soft_wrap=True
            )

    def _left(self) -> str:
        """The time that the units to come will take, if they take what the fresh ones of this run took."""
        if not self._fresh or self._count >= self._total:
            return ""
        seconds = (time.monotonic() - self._begun) / self._fresh * (self._total - self._count)
        return f"about {seconds:.0f} s left" if seconds < 90 else f"about {seconds / 60:.0f} min left"

    def _place(self, unit: UnitTold) -> str:
        """Which unit this is, in words."""
        raise NotImplementedError

    def _finished(self, results: Any) -> None:
        """Print the table."""
        raise NotImplementedError

    def end(self, output: Path) -> None:
        """Say where the results are."""
        print_places(self.console, output)


def print_places(console: Console, output: Path) -> None:
    """Where the results are."""
    for name, what in (
        ("report.html", "the report"),
        ("tables", "the tables"),
        ("tensorboard", "curves and cells: tensorboard --logdir of this folder"),
        ("artifacts", "what was fitted, to load and to share"),
        ("units.jsonl", "every unit of work; run again to go on from it"),
    ):
        if (output / name).exists():
            console.print(f"{output / name}  {what}", soft_wrap=True)
