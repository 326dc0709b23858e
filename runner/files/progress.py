"""Progress on the terminal, for whatever may take more than a few seconds.

Always on standard error, and silent where that is no terminal.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from subvene.runner.files.console import Console

_T = TypeVar("_T")


def track(items: Sequence[_T], description: str) -> Iterable[_T]:
    """`items`, with a bar while they are gone through."""
    with _bar(disable=not sys.stderr.isatty()) as bar:
        yield from bar.track(items, description=description)


@contextlib.contextmanager
def status(description: str, *, silent: bool = False) -> Iterator[None]:
    """A spinner while the block runs, for work whose length nobody knows.

    Args:
        description: what is being done.
        silent: show nothing, because the work shows its own progress (a download does).
    """
    if silent or not sys.stderr.isatty():
        yield
        return
    with Console(stderr=True).status(Text(description)):
        yield


@contextlib.contextmanager
def generating(max_new_tokens: int, description: str = "generating") -> Iterator[Any]:
    """A bar over the tokens of a batched `generate`: pass what this yields as its `streamer`.

    Yields:
        A streamer, or None where there is no terminal, so that generation need not wait for one.
    """
    if not sys.stderr.isatty():
        yield None
        return
    with _bar() as bar:
        yield _TokenBar(bar, bar.add_task(description, total=max_new_tokens))


def _bar(*, disable: bool = False) -> Progress:
    # rich's own columns would read a description as markup.
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    return Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True, disable=disable
    )


class _TokenBar:
    """What transformers calls a streamer; unlike its own, it does not mind a batch."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task
        self._seen_prompt = False

    def put(self, value: Any) -> None:
        """Called with the prompt, then with each step's tokens [batch]."""
        if self._seen_prompt:
            self._bar.advance(self._task)
        self._seen_prompt = True

    def end(self) -> None:
        """Called after the last token."""
