"""What reaches a terminal: text, and no escape sequence that a file's name or a model's answer brings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult

_KEPT = "\n\t"
_DELETE, _PICTURES, _PICTURE_OF_DELETE = 0x7F, 0x2400, 0x2421
# The C0 controls and DEL as their pictures; the C1 controls, which some terminals obey, as an unknown one.
_SHOWN = (
    {code: chr(_PICTURES + code) for code in range(0x20) if chr(code) not in _KEPT}
    | {_DELETE: chr(_PICTURE_OF_DELETE)}
    | {code: "\ufffd" for code in range(0x80, 0xA0)}
)


def printable(text: str) -> str:
    """`text` with its control characters shown instead of obeyed; line ends and tabs stay."""
    return text.translate(_SHOWN)


def console(*, stderr: bool) -> Console:
    """A rich console for prompts, answers, names and paths: neither markup nor controls are obeyed."""
    from rich.console import Console

    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    made.push_render_hook(_Hook())
    return made


class _Hook:
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """What rich calls with everything that is about to be printed."""
        from rich.control import Control

        # A control is rich's own (a bar's cursor), never somebody's text.
        return [one if isinstance(one, Control) else _Printable(one) for one in renderables]


class _Printable:
    """A renderable whose text is printable."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        segments: Iterable[Segment] = console.render(self._inner, options)
        for segment in segments:
            shown = segment.text if segment.control else printable(segment.text)
            yield Segment(shown, segment.style, segment.control)
