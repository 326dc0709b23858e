"""A figure of the page as an SVG file, drawn by matplotlib from the figure itself: no browser, no network.

Only what this project's figures hold can be drawn; anything else is an error, not a gap in a drawing. The
same figure gives the same bytes with the same matplotlib.
"""

from __future__ import annotations

import io
import warnings

import matplotlib.figure
import matplotlib.style
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, MultipleLocator

from subvene.runner.reports.svg_marks import DRAWN, Canvas, FigureError, draw_shapes, plain

WIDTH = 5.2
"""Of the axes in inches: with labels about as wide as a page's text."""
_PIXELS = 100.0
# What a legend, a title and the labels of an axis take of a figure's height on the page, in pixels.
_ABOUT_AXES = 90
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
            if trace.type not in DRAWN:
                raise FigureError(f"figure: expected traces {', '.join(DRAWN)}; found {trace.type}")
            DRAWN[trace.type](canvas, trace)
        draw_shapes(canvas)
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


def _canvas(made: go.Figure) -> Canvas:
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
    return Canvas(made, axes)


def _upward(canvas: Canvas, name: str, axes: Axes) -> None:
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


def _across(canvas: Canvas) -> None:
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


def _legend(canvas: Canvas) -> None:
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
