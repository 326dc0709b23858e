"""The traces and shapes of a figure as matplotlib draws them on its axes."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import matplotlib.colors
import matplotlib.patches
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from subvene.specs import SubveneError

_POINTS = 0.62
_SYMBOLS: dict[str, object] = {
    "circle": "o",
    "circle-open": "o",
    "square": "s",
    "triangle-up": "^",
    "triangle-down": "v",
    "triangle-left": "<",
    "diamond": "D",
    "x": "X",
    "star": "*",
    "pentagon": "p",
    "hexagon": "h",
    "star-square": (4, 1, 0),
    "line-ns": "|",
}
_DASHES: dict[str, object] = {
    "solid": "-",
    "dash": (0, (5, 3)),
    "dot": (0, (1, 2)),
    "dashdot": (0, (5, 2, 1, 2)),
    "longdash": (0, (9, 3)),
}
_INK = "#444444"

_T = TypeVar("_T")


class FigureError(SubveneError):
    """A figure holds what this cannot draw."""


@dataclass
class Canvas:
    """The axes of one figure by plotly's names (`y`, `y2`), and what has been laid out on them.

    Attributes:
        made: the figure of the page.
        axes: by name of the upward axis.
        categories: the words along each axis (`x`, `y`, `y2`), in their order.
        handles: what the legend shows, each with its rank.
        whole: whether what lies along an axis is counted, such as layers.
    """

    made: go.Figure
    axes: dict[str, Axes]
    categories: dict[str, list[str]] = field(default_factory=dict)
    handles: list[tuple[float, object, str]] = field(default_factory=list)
    whole: dict[str, bool] = field(default_factory=dict)

    @property
    def is_map(self) -> bool:
        """Whether it is a heat map."""
        return any(trace.type == "heatmap" for trace in self.made.data)

    def of(self, trace: go.Scatter) -> Axes:
        """The axes that a trace is on."""
        return self.axes[trace.yaxis or "y"]

    def places(self, axis: str, values: Sequence[float | str | None]) -> list[float]:
        """Where values lie along an axis: a number there, a word at its turn."""
        placed = [self._place(axis, value) for value in values]
        self.whole[axis] = self.whole.get(axis, True) and all(
            place.is_integer() or np.isnan(place) for place in placed
        )
        return placed

    def _place(self, axis: str, value: float | str | None) -> float:
        if value is None:
            return float("nan")
        if not isinstance(value, str):
            return float(value)
        known = self.categories.setdefault(axis, [])
        if (word := plain(value)) not in known:
            known.append(word)
        return float(known.index(word))


def plain(text: str) -> str:
    """A text of a figure, in which `<br>` breaks lines and nothing else is markup."""
    return html.unescape(re.sub(r"<br */?>", "\n", text))


def _scatter(canvas: Canvas, trace: go.Scatter) -> None:
    axes = canvas.of(trace)
    x, y = canvas.places("x", trace.x), canvas.places(trace.yaxis or "y", trace.y)
    if trace.fill is not None:
        if trace.fill != "toself":
            raise FigureError(f"figure: expected a fill to itself; found {trace.fill}")
        axes.fill(x, y, color=_color(trace.fillcolor), alpha=trace.opacity, linewidth=0)
        return
    mode, marker = trace.mode or "lines+markers", trace.marker
    color = _color(trace.line.color or marker.color or marker.line.color)
    look: dict[str, object] = {"color": color, "linestyle": "none"}
    if "lines" in mode:
        look |= {"linestyle": _known(_DASHES, trace.line.dash or "solid"), "linewidth": _width(trace.line)}
    if "markers" in mode:
        look |= _marker(trace, color)
    opacity = trace.opacity if marker.opacity is None else marker.opacity
    (handle,) = axes.plot(x, y, alpha=opacity, clip_on=trace.cliponaxis is not False, **look)
    _error_bars(axes, trace, x, y, color)
    if "text" in mode:
        for at, up, said in zip(x, y, trace.text, strict=True):
            axes.annotate(
                plain(said), (at, up), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8
            )
    _enter(canvas, trace, handle)


def _marker(trace: go.Scatter, color: str) -> dict[str, object]:
    marker = trace.marker
    symbol, size = marker.symbol or "circle", marker.size or 6
    sizes = [size] if isinstance(size, int | float) else list(size)
    look: dict[str, object] = {"marker": _known(_SYMBOLS, symbol), "markersize": _POINTS * max(sizes)}
    if len(sizes) > 1:
        look["markevery"] = [i for i, of in enumerate(sizes) if of]
    hollow = symbol.endswith("-open")
    if hollow or symbol == "line-ns":
        look["markeredgewidth"] = _POINTS * (marker.line.width or 2)
        look["markeredgecolor"] = _color(marker.line.color or marker.color or color)
    look["markerfacecolor"] = "none" if hollow else _color(marker.color or color)
    if not hollow and symbol != "line-ns":
        look["markeredgecolor"] = "none"
    return look


def _error_bars(axes: Axes, trace: go.Scatter, x: list[float], y: list[float], color: str) -> None:
    lengths = {}
    for name, bars in (("xerr", trace.error_x), ("yerr", trace.error_y)):
        if bars.array is not None:
            above = _numbers(bars.array)
            below = above if bars.arrayminus is None else _numbers(bars.arrayminus)
            lengths[name] = np.nan_to_num(np.stack([below, above]))
    if lengths:
        axes.errorbar(x, y, fmt="none", ecolor=color, elinewidth=0.8, capsize=2.5, **lengths)


def _bar(canvas: Canvas, trace: go.Bar) -> None:
    handle = canvas.axes["y"].bar(
        canvas.places("x", trace.x),
        trace.y,
        width=0.8 if trace.width is None else trace.width,
        color=matplotlib.colors.to_rgba(_color(trace.marker.color), trace.marker.opacity),
        edgecolor=_color(trace.marker.line.color),
        linewidth=0.8,
    )
    _enter(canvas, trace, handle)


def _heat_map(canvas: Canvas, trace: go.Heatmap) -> None:
    axes, z = canvas.axes["y"], np.array([_numbers(row) for row in trace.z])
    rows, columns = z.shape
    x = canvas.places("x", trace.x if trace.x is not None else range(columns))
    y = canvas.places("y", trace.y if trace.y is not None else range(rows))
    stops = [(share, _color(color)) for share, color in trace.colorscale]
    colors = matplotlib.colors.LinearSegmentedColormap.from_list("figure", stops)
    colors = (colors.reversed() if trace.reversescale else colors).with_extremes(bad="#eeeeee")
    drawn = axes.pcolormesh(
        _edges(x), _edges(y), np.ma.masked_invalid(z), cmap=colors, vmin=trace.zmin, vmax=trace.zmax
    )
    # Without an edge of its own colour a cell shows a seam.
    drawn.set_edgecolor("face")
    drawn.set_linewidth(0.4)
    drawn.set_rasterized(z.size > 1000)
    axes.grid(visible=False)
    figure, place = axes.figure, axes.get_position()
    beside = figure.add_axes((place.x1 + 0.03, place.y0, 0.03, place.height))
    scale = figure.colorbar(drawn, cax=beside, label=plain(trace.colorbar.title.text or ""))
    scale.outline.set_visible(False)
    if trace.colorbar.tickformat is not None:
        scale.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if trace.texttemplate is not None:
        _cell_texts(axes, trace, x, y, z)


def _cell_texts(
    axes: Axes, trace: go.Heatmap, x: list[float], y: list[float], z: NDArray[np.float64]
) -> None:
    forms: dict[str, Callable[[int, int], str]] = {
        "%{text}": lambda i, j: plain(trace.text[i][j]),
        "%{z:.2f}": lambda i, j: f"{z[i, j]:.2f}".replace("-", "−"),
    }
    said = _known(forms, trace.texttemplate)
    low = np.nanmin(z) if trace.zmin is None else trace.zmin
    high = np.nanmax(z) if trace.zmax is None else trace.zmax
    colors = axes.collections[0].get_cmap()
    for i, up in enumerate(y):
        for j, at in enumerate(x):
            if not np.isnan(z[i, j]):
                red, green, blue, _ = colors((z[i, j] - low) / ((high - low) or 1))
                ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
                axes.text(at, up, said(i, j), ha="center", va="center", color=ink, fontsize=8)


def _box(canvas: Canvas, trace: go.Box) -> None:
    if trace.orientation != "h":
        raise FigureError("figure: expected boxes that lie")
    axes, (at,) = canvas.axes["y"], canvas.places("y", [trace.name])
    color = _color(trace.marker.color)
    line = {"color": color, "linewidth": 1.0}
    axes.boxplot(
        [list(trace.x)],
        positions=[at],
        orientation="horizontal",
        widths=0.5,
        showfliers=False,
        manage_ticks=False,
        boxprops=line,
        whiskerprops=line,
        capprops=line,
        medianprops=line,
    )
    # Spread evenly rather than at random, so that it is always the same.
    spread = [at + 0.36 * ((0.618034 * i) % 1 - 0.5) for i in range(len(trace.x))]
    axes.plot(trace.x, spread, "o", color=color, markersize=2.5, alpha=0.6, markeredgecolor="none")


DRAWN: dict[str, Callable[[Canvas, go.Figure], None]] = {
    "scatter": _scatter,
    "bar": _bar,
    "heatmap": _heat_map,
    "box": _box,
}
"""How a trace is drawn, by its type."""


def draw_shapes(canvas: Canvas) -> None:
    """Rectangles, lines across the axes, and what is written at them."""
    axes = canvas.axes["y"]
    for shape in canvas.made.layout.shapes:
        color, width = _color(shape.line.color), _width(shape.line)
        if shape.type == "rect":
            corner, size = (shape.x0, shape.y0), (shape.x1 - shape.x0, shape.y1 - shape.y0)
            box = matplotlib.patches.Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=width)
            axes.add_patch(box)
            continue
        dash = _known(_DASHES, shape.line.dash or "solid")
        look = {"color": color, "linestyle": dash, "linewidth": width, "zorder": 1}
        if shape.type == "line" and (shape.xref or "").endswith("domain"):
            axes.axhline(shape.y0, **look)
        elif shape.type == "line" and (shape.yref or "").endswith("domain"):
            axes.axvline(shape.x0, **look)
        else:
            raise FigureError(f"figure: expected rectangles and lines across it; found a {shape.type}")
    for note in canvas.made.layout.annotations:
        axes.annotate(
            plain(note.text),
            (note.x, note.y),
            xycoords=("axes fraction", "data"),
            xytext=(0, -3),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
            color=_color(note.font.color),
        )


def _enter(canvas: Canvas, trace: go.Scatter, handle: object) -> None:
    if trace.name and trace.showlegend is not False:
        canvas.handles.append((trace.legendrank or 1000, handle, plain(trace.name)))


def _numbers(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _edges(centres: list[float]) -> NDArray[np.float64]:
    """Of cells about centres that need not lie evenly."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    between = (np.array(centres[:-1]) + np.array(centres[1:])) / 2
    return np.concatenate([[2 * centres[0] - between[0]], between, [2 * centres[-1] - between[-1]]])


def _width(line: go.scatter.Line) -> float:
    return _POINTS * (2.0 if line.width is None else float(line.width))


def _color(color: str | None) -> str:
    """A colour of plotly's (`#rrggbb`, `rgb(…)`, `rgba(…)`) as `#rrggbb` or `#rrggbbaa`."""
    if color is None:
        return _INK
    if not color.startswith("rgb"):
        return color
    *channels, last = (float(part) for part in re.findall(r"[\d.]+", color))
    shares = [*channels, last] if len(channels) == 2 else channels
    alpha = 1.0 if len(channels) == 2 else last
    return matplotlib.colors.to_hex([*(share / 255 for share in shares), alpha], keep_alpha=alpha < 1)


def _known(known: Mapping[str, _T], name: str) -> _T:
    if name not in known:
        raise FigureError(f"figure: expected one of {', '.join(known)}; found {name}")
    return known[name]
