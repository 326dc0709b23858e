"""The terminal, through rich: what is printed is text of others, so neither markup nor escape codes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment

from subvene.runner.files.printable import on_screen


class Console(rich.console.Console):
    """rich's console, the only one that subvene prints with.

    Args:
        **options: rich's own.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def render(
        self, renderable: Any, options: rich.console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As rich does; escape codes are then its own (styles and controls), and none of a text's."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(on_screen(segment.text), segment.style)
