"""Progress bars on the terminal, for whatever may take more than a few seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

_T = TypeVar("_T")


def track(items: Sequence[_T], description: str) -> Iterable[_T]:
    """`items`, with a bar on standard error while they are gone through; silent where that is no terminal."""
    return rich_track(
        items,
        description,
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
