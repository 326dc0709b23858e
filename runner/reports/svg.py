"""A figure of the page as an SVG file, drawn by matplotlib from the figure itself: no browser, no network.

Only what this project's figures hold can be drawn; anything else is an error, not a gap in a drawing. The
same figure gives the same bytes with the same matplotlib.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import matplotlib.colors
import matplotlib.figure
import matplotlib.style
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, MultipleLocator, PercentFormatter
from numpy.typing import NDArray

from subvene.specs import SubveneError

WIDTH = 5.2
"""Of the axes in inches: with labels about as wide as a page's text."""
_PIXELS = 100.0
# What a legend, a title and the labels of an axis take of a figure's height on the page, in pixels.
_ABOUT_AXES = 90
_POINTS = 0.62
_STYLE: dict[str, object] = {
    "svg.hashsalt": "subvene",
    # Letters stay letters, which every viewer has fonts for, whatever script they are of.
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
}
_SYMBOLS: dict[str, object] = {
    "circle": "o",
    "circle-open": "o",
    "square": "s",
    "triangle-up": "^",
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
class _Canvas:
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
        return any(trace.type == "heatmap" for trace in self.made.data)

    def of(self, trace: go.Scatter) -> Axes:
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


def svg(made: go.Figure, about: str) -> str:
    """The figure as an SVG document.

    Args:
        made: traces of scatter, bar, heat map and box; shapes that are lines and rectangles.
        about: what it shows, for its title.

    Raises:
        FigureError: it holds something else.
    """
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        # It measures with its own font; a viewer that has the letter draws it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas = _canvas(made)
        for trace in made.data:
            if trace.type not in _DRAWN:
                raise FigureError(f"figure: expected traces {', '.join(_DRAWN)}; found {trace.type}")
            _DRAWN[trace.type](canvas, trace)
        _shapes(canvas)
        for name, axes in canvas.axes.items():
            _upward(canvas, name, axes)
        _across(canvas)
        _legend(canvas)
        stream = io.StringIO()
        metadata = {"Date": None, "Creator": "subvene", "Title": about}
        figure = canvas.axes["y"].figure
        seen = figure.get_tightbbox().padded(0.05)
        figure.savefig(stream, format="svg", bbox_inches=seen, metadata=metadata)
    # matplotlib leaves blanks at the ends of lines.
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def plain(text: str) -> str:
    """A text of a figure, in which `<br>` breaks lines and nothing else is markup."""
    return html.unescape(re.sub(r"<br */?>", "\n", text))


def _canvas(made: go.Figure) -> _Canvas:
    height = max(1.2, ((made.layout.height or 420) - _ABOUT_AXES) / _PIXELS)
    figure = matplotlib.figure.Figure(figsize=(WIDTH, height))
    low, high = made.layout.yaxis.domain or (0, 1)
    axes = {"y": figure.add_axes((0, low, 1, high - low))}
    for name in sorted({trace.yaxis or "y" for trace in made.data if trace.type == "scatter"} - {"y"}):
        declared = made.layout[f"yaxis{name[1:]}"]
        low, high = declared.domain or (0, 1)
        axes[name] = figure.add_axes((0, low, 1, high - low), sharex=axes["y"], facecolor="none")
        if declared.side == "right":
            axes[name].yaxis.tick_right()
            axes[name].yaxis.set_label_position("right")
    return _Canvas(made, axes)


def _scatter(canvas: _Canvas, trace: go.Scatter) -> None:
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


def _bar(canvas: _Canvas, trace: go.Bar) -> None:
    handle = canvas.axes["y"].bar(
        canvas.places("x", trace.x),
        trace.y,
        width=0.8 if trace.width is None else trace.width,
        color=matplotlib.colors.to_rgba(_color(trace.marker.color), trace.marker.opacity),
        edgecolor=_color(trace.marker.line.color),
        linewidth=0.8,
    )
    _enter(canvas, trace, handle)


def _heat_map(canvas: _Canvas, trace: go.Heatmap) -> None:
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


def _box(canvas: _Canvas, trace: go.Box) -> None:
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


_DRAWN: dict[str, Callable[[_Canvas, go.Figure], None]] = {
    "scatter": _scatter,
    "bar": _bar,
    "heatmap": _heat_map,
    "box": _box,
}


def _shapes(canvas: _Canvas) -> None:
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


def _upward(canvas: _Canvas, name: str, axes: Axes) -> None:
    declared = canvas.made.layout[f"yaxis{name[1:]}"]
    if declared.visible is False:
        axes.set_axis_off()
    if declared.title.text:
        axes.set_ylabel(plain(declared.title.text))
    if declared.type == "log":
        axes.set_yscale("log")
    if declared.range is not None:
        axes.set_ylim(*declared.range)
    if declared.rangemode == "tozero":
        axes.set_ylim(bottom=0)
    _ticks(axes.yaxis, declared, canvas.categories.get(name), whole=canvas.is_map and canvas.whole["y"])
    if declared.autorange == "reversed":
        axes.invert_yaxis()
    if declared.showgrid is not False and name == "y" and not canvas.is_map:
        axes.grid(axis="y")
    for side in ("top", "right"):
        axes.spines[side].set_visible(side == "right" and declared.side == "right")
    if name != "y":
        axes.grid(visible=False)


def _across(canvas: _Canvas) -> None:
    declared = canvas.made.layout.xaxis
    labelled = declared.anchor or "y"
    for name, axes in canvas.axes.items():
        if declared.range is not None:
            axes.set_xlim(*declared.range)
        if declared.showgrid is not False and name == "y" and not canvas.is_map:
            axes.grid(axis="x")
        if name == labelled:
            axes.set_xlabel(plain(declared.title.text or ""))
            _ticks(axes.xaxis, declared, canvas.categories.get("x"), whole=canvas.whole.get("x", False))
        else:
            axes.tick_params(axis="x", bottom=False, labelbottom=False)
    if canvas.made.layout.title.text:
        canvas.axes["y"].set_title(plain(canvas.made.layout.title.text), fontsize=10, loc="left")


def _ticks(
    axis: matplotlib.axis.Axis, declared: go.layout.XAxis, words: list[str] | None, *, whole: bool
) -> None:
    if words is not None:
        axis.set_major_locator(FixedLocator(range(len(words))))
        axis.set_ticklabels(words)
    elif declared.tickvals is not None:
        axis.set_major_locator(FixedLocator(declared.tickvals))
        if declared.ticktext is not None:
            axis.set_ticklabels([plain(word) for word in declared.ticktext])
    elif declared.dtick is not None and declared.type != "log":
        axis.set_major_locator(MultipleLocator(declared.dtick))
    elif whole and declared.type != "log":
        axis.set_major_locator(MaxNLocator(integer=True))


def _enter(canvas: _Canvas, trace: go.Scatter, handle: object) -> None:
    if trace.name and trace.showlegend is not False:
        canvas.handles.append((trace.legendrank or 1000, handle, plain(trace.name)))


def _legend(canvas: _Canvas) -> None:
    layout = canvas.made.layout
    shown = len(canvas.made.data) > 1 if layout.showlegend is None else layout.showlegend
    if not shown or not canvas.handles:
        return
    entries = sorted(canvas.handles, key=lambda entry: entry[0])
    names = [name for _, _, name in entries]
    columns = max(1, min(len(names), int(86 // (max(map(len, names)) + 6))))
    top = canvas.axes["y"]
    above = 1.0 if not top.get_title(loc="left") else 1 + 0.25 / top.bbox.height * top.figure.dpi
    top.legend(
        [handle for _, handle, _ in entries],
        names,
        title=plain(layout.legend.title.text) if layout.legend.title.text else None,
        loc="lower left",
        bbox_to_anchor=(0, above),
        ncols=columns,
        borderaxespad=0.2,
        handlelength=2.6,
    )


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
