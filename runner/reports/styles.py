"""How lines and marks of a figure are told apart: by colour, and by mark or dash besides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plotly.colors import sample_colorscale

from subvene.runner.reports.curves import COLORS, REFERENCE

_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "x", "star")
_DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class Style:
    """How one line, or one group of marks, is told from the others."""

    color: str
    symbol: str = "circle"
    dash: str = "solid"


def style(i: int) -> Style:
    """The look of the i-th of several things that have no order."""
    rounds = i // len(COLORS)
    # When a colour comes again it has another mark and another dash.
    symbol = _SYMBOLS[(i + rounds) % len(_SYMBOLS)]
    return Style(COLORS[i % len(COLORS)], symbol, _DASHES[rounds % len(_DASHES)])


def in_order(n: int) -> list[Style]:
    """Looks of things in an order, such as layers: few are told apart by hue, many by a scale."""
    if n <= len(COLORS):
        return [style(i) for i in range(n)]
    # Neither end of the scale: one is lost on a dark page, the other on a white one.
    colors = sample_colorscale("Viridis", [0.2 + 0.65 * i / (n - 1) for i in range(n)])
    return [Style(color, _SYMBOLS[i % len(_SYMBOLS)]) for i, color in enumerate(colors)]


def about_zero(values: Sequence[float]) -> dict[float, Style]:
    """Blue below 0 and dotted, grey at 0, orange above; darker and another mark further out."""
    looks = {0.0: Style(REFERENCE, "diamond")}
    sides = (
        (sorted((v for v in values if v < 0), reverse=True), ("#56B4E9", "#0072B2"), "dot"),
        (sorted(v for v in values if v > 0), ("#E69F00", "#D55E00"), "solid"),
    )
    for side, (near, far), dash in sides:
        for i, value in enumerate(side):
            color = far if len(side) == 1 else _between(near, far, i / (len(side) - 1))
            looks[value] = Style(color, _SYMBOLS[i % len(_SYMBOLS)], dash)
    return looks


def _between(a: str, b: str, share: float) -> str:
    channels = ((int(a[i : i + 2], 16), int(b[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(x + (y - x) * share):02x}" for x, y in channels)
