"""Figures of a comparison: what is won against what it costs, sweeps, and the validation grid.

All of them are seen on a light and on a dark page: nothing has a background, and the page sets the ink.
"""

from __future__ import annotations

import html
import json
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import plotly.graph_objects as go
from pydantic import JsonValue

from subvene.runner.experiments.results import Choice, Point
from subvene.runner.experiments.rows import METRICS, Row

# Okabe and Ito's colours without black and yellow: told apart by everyone, on white and on black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
REFERENCE = "#888888"
_GRID = "rgba(128, 128, 128, 0.25)"
_STRENGTHS = ("strength", "coefficient")

LEGEND_WIDTH = 430
"""In pixels, where two figures stand side by side."""


def figure(*traces: Any, x: str, y: str, height: int = 420) -> go.Figure:
    """A figure without a background, with axis titles."""
    made = go.Figure(list(traces))
    made.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        height=height,
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        hovermode="closest",
    )
    axis = {"gridcolor": _GRID, "zeroline": False, "linecolor": _GRID, "automargin": True}
    made.update_xaxes(title={"text": x}, **axis)
    made.update_yaxes(title={"text": y}, **axis)
    return made


def with_legend(made: go.Figure, width: int = LEGEND_WIDTH) -> go.Figure:
    """Room for the legend between the buttons, which a full row would reach, and the axes.

    Args:
        made: the figure.
        width: of the legend, in pixels; left out: of a figure that has another one beside it.
    """
    names = [trace.name or "" for trace in made.data if trace.showlegend is not False]
    # As plotly lays it out: one row if all fit, else columns as wide as the widest.
    widths = [45 + 7 * len(name) for name in names]
    in_a_row = max(1, width // max(widths, default=1))
    rows = 1 if sum(widths) <= width else -(-len(names) // in_a_row)
    made.update_layout(margin={"t": 44 + 20 * rows}, height=made.layout.height + 20 * rows)
    return made


def trade_off(rows: Sequence[Row], metric: str, baselines: Collection[str]) -> go.Figure | None:
    """A metric against KL, one line a condition and one mark a point of its sweep.

    Args:
        rows: of the table.
        metric: what is drawn upwards.
        baselines: the conditions that are the untouched model.

    Returns:
        None unless something beside the baseline has both.
    """
    drawn = [row for row in rows if metric in row.metrics and "kl" in row.metrics]
    if all(row.condition in baselines for row in drawn):
        return None
    made = figure(x="KL(original ‖ edited), nats per token", y=METRICS[metric])
    colors = _colors(rows, baselines)
    for condition, group in _by_condition(drawn).items():
        # A line through a sweep says where the next point would be; it does in the order of the KL only.
        group = sorted(group, key=lambda row: row.metrics["kl"].mean)
        made.add_trace(
            go.Scatter(
                **_values(group, "kl", "x"),
                **_values(group, metric, "y"),
                name=as_it_stands(condition),
                mode="lines+markers",
                line={"color": colors[condition], "width": 1.5, "dash": "dot"},
                marker={
                    "color": colors[condition],
                    "size": 10,
                    "symbol": "diamond" if condition in baselines else "circle",
                },
                text=[as_it_stands(row.label) for row in group],
                hovertemplate="%{text}<br>KL %{x:.3f}<br>" + METRICS[metric] + " %{y:.3f}<extra></extra>",
            )
        )
    _reference(made, rows, metric, baselines)
    return made


def swept(rows: Sequence[Row], metric: str, baselines: Collection[str]) -> tuple[str, go.Figure] | None:
    """A metric along the sweeps of conditions, over the strength if that is swept.

    Returns:
        The name of the field that is swept, and the figure; None if no condition sweeps a number.
    """
    lines: dict[tuple[str, str], list[tuple[float, Row]]] = {}
    colors = _colors(rows, baselines)
    field = None
    for condition, group in _by_condition(rows).items():
        path = _axis([row.point for row in group])
        if path is None or field not in (None, _last(path)):
            continue
        for row in group:
            if metric in row.metrics:
                field = _last(path)
                others = {p: v for p, v in row.point.items() if p != path}
                value = cast(float, row.point[path])
                lines.setdefault((condition, point_in_words(others)), []).append((value, row))
    if field is None:
        return None
    made = figure(x=as_it_stands(field), y=METRICS[metric], height=360)
    symbols = ("circle", "square", "triangle-up", "x", "diamond", "star")
    for (condition, constant), line in lines.items():
        line = sorted(line, key=lambda pair: pair[0])
        group = [row for _, row in line]
        nth = [c for name, c in lines if name == condition].index(constant)
        made.add_trace(
            go.Scatter(
                x=[value for value, _ in line],
                **_values(group, metric, "y"),
                name=as_it_stands(" ".join(filter(None, (condition, constant)))),
                mode="lines+markers",
                line={"color": colors[condition]},
                marker={"size": 9, "symbol": symbols[nth % len(symbols)]},
                text=[as_it_stands(row.label) for row in group],
                hovertemplate="%{text}<br>" + METRICS[metric] + " %{y:.3f}<extra></extra>",
            )
        )
    _reference(made, rows, metric, baselines)
    return field, made


def validation_grid(choices: Sequence[Choice]) -> go.Figure | None:
    """What the validation questions said of every point of one condition's sweep, the chosen points marked.

    Args:
        choices: one a seed and fold, all by the same metric.

    Returns:
        A line for one field with several values, a heat map for two; None for another number of them.
    """
    fields = grid_fields(choices)
    metric = METRICS.get(choices[0].metric, choices[0].metric)
    if len(fields) == 1:
        return _grid_line(fields[0], metric, choices)
    if len(fields) == 2:
        return _grid_map(fields[0], fields[1], metric, choices)
    return None


def grid_fields(choices: Sequence[Choice]) -> list[str]:
    """The fields of a sweep that take several values, the strength first."""
    points = _points(choices)
    paths = list(dict.fromkeys(path for point in points for path in point))
    several = [p for p in paths if len({_key(point.get(p)) for point in points}) > 1]
    return sorted(several, key=lambda path: _last(path) not in _STRENGTHS)


def grid_means(choices: Sequence[Choice]) -> list[tuple[Point, list[float], int]]:
    """Each point with its values over seeds and folds, and how many of these chose it."""
    values: dict[str, tuple[Point, list[float]]] = {}
    grid = [tried for choice in choices for tried in choice.tried]
    # A mean over the seeds and folds that stayed finite would be a mean over other questions.
    broken = {_key(tried.point) for tried in grid if tried.not_finite is not None}
    for tried in grid:
        _, of_point = values.setdefault(_key(tried.point), (tried.point, []))
        if tried.value is not None and _key(tried.point) not in broken:
            of_point.append(tried.value)
    times = [_key(choice.chosen) for choice in choices]
    return [(point, of_point, times.count(key)) for key, (point, of_point) in values.items()]


def _points(choices: Sequence[Choice]) -> list[Point]:
    return [tried.point for choice in choices for tried in choice.tried]


def point_in_words(point: Mapping[str, JsonValue]) -> str:
    """`strength=5, k=16`: the last part of each path, with its value."""
    return ", ".join(f"{_last(path)}={_shown(value)}" for path, value in point.items())


def as_it_stands(text: str) -> str:
    """Plotly reads some HTML in texts, links among it; a name or value is to be shown as it stands."""
    return html.escape(text, quote=False)


def _grid_line(path: str, metric: str, choices: Sequence[Choice]) -> go.Figure:
    found = [entry for entry in grid_means(choices) if entry[1]]
    if all(_is_number(point[path]) for point, _, _ in found):
        found.sort(key=lambda entry: cast(float, entry[0][path]))
        xs: list[Any] = [point[path] for point, _, _ in found]
    else:
        xs = [as_it_stands(_shown(point[path])) for point, _, _ in found]
    means = [statistics.fmean(values) for _, values, _ in found]
    made = figure(x=as_it_stands(_last(path)), y=f"{metric} on validation questions", height=360)
    made.add_trace(
        go.Scatter(
            x=xs,
            y=means,
            error_y=bars([statistics.stdev(v) if len(v) > 1 else None for _, v, _ in found]),
            mode="lines+markers",
            line={"color": COLORS[0]},
            marker={"size": 9},
            name="mean over seeds and folds",
        )
    )
    marked = [(x, y, n) for x, y, (_, _, n) in zip(xs, means, found, strict=True) if n]
    made.add_trace(
        go.Scatter(
            x=[x for x, _, _ in marked],
            y=[y for _, y, _ in marked],
            text=[f"{n} of {len(choices)}" for _, _, n in marked],
            textposition="top center",
            mode="markers+text",
            marker={"size": 16, "symbol": "circle-open", "color": COLORS[1], "line": {"width": 3}},
            name="chosen",
        )
    )
    return made


def _grid_map(
    across: str,
    upwards: str,
    metric: str,
    choices: Sequence[Choice],
) -> go.Figure:
    found = {
        (_key(point.get(across)), _key(point.get(upwards))): (values, times)
        for point, values, times in grid_means(choices)
    }
    xs, ys = _levels(choices, across), _levels(choices, upwards)
    z: list[list[float | None]] = []
    text: list[list[str]] = []
    made = figure(x=as_it_stands(_last(across)), y=as_it_stands(_last(upwards)), height=140 + 64 * len(ys))
    for i, y in enumerate(ys):
        z.append([])
        text.append([])
        for j, x in enumerate(xs):
            values, times = found.get((_key(x), _key(y)), ([], 0))
            mean = statistics.fmean(values) if values else None
            said = "" if mean is None else f"{mean:.3f}"
            z[-1].append(mean)
            text[-1].append(f"{said}<br>chosen {times} of {len(choices)}" if times else said)
            if times:
                box = {"x0": j - 0.48, "x1": j + 0.48, "y0": i - 0.46, "y1": i + 0.46}
                made.add_shape(type="rect", line={"color": COLORS[1], "width": 3}, **box)
    made.add_trace(
        go.Heatmap(
            x=[as_it_stands(_shown(x)) for x in xs],
            y=[as_it_stands(_shown(y)) for y in ys],
            z=z,
            text=text,
            texttemplate="%{text}",
            colorscale="Blues",
            colorbar={"title": {"text": metric}, "outlinewidth": 0},
            hovertemplate="%{x}, %{y}: %{z:.4f}<extra></extra>",
        )
    )
    made.update_xaxes(type="category", showgrid=False)
    made.update_yaxes(type="category", showgrid=False)
    return made


def _reference(made: go.Figure, rows: Sequence[Row], metric: str, baselines: Collection[str]) -> None:
    for row in rows:
        if row.condition in baselines and metric in row.metrics:
            made.add_hline(
                y=row.metrics[metric].mean,
                line={"color": REFERENCE, "dash": "dash", "width": 1.5},
                annotation={"text": as_it_stands(row.label), "font": {"color": REFERENCE}},
                annotation_position="bottom right",
            )


def _values(rows: Sequence[Row], metric: str, axis: str) -> dict[str, object]:
    summaries = [row.metrics[metric] for row in rows]
    return {axis: [s.mean for s in summaries], f"error_{axis}": bars([s.sd for s in summaries])}


def bars(deviations: Sequence[float | None]) -> dict[str, object] | None:
    """Error bars of these lengths; None where there are none."""
    if all(deviation is None for deviation in deviations):
        return None
    return {"type": "data", "array": list(deviations), "thickness": 1, "width": 4}


def _by_condition(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.condition, []).append(row)
    return groups


def _colors(rows: Iterable[Row], baselines: Collection[str]) -> dict[str, str]:
    """A condition has one colour in all figures."""
    known = list(dict.fromkeys(row.condition for row in rows if row.condition not in baselines))
    colors = {condition: COLORS[i % len(COLORS)] for i, condition in enumerate(known)}
    return colors | dict.fromkeys(baselines, REFERENCE)


def _axis(points: Sequence[Mapping[str, JsonValue]]) -> str | None:
    """The field to draw a sweep over: a number with several values, the strength if there is one."""
    candidates = [
        path
        for path in (points[0] if points else ())
        if all(_is_number(point.get(path)) for point in points) and len({point[path] for point in points}) > 1
    ]
    return next((p for p in candidates if _last(p) in _STRENGTHS), candidates[0] if candidates else None)


def _levels(choices: Sequence[Choice], path: str) -> list[Any]:
    levels: list[Any] = list({_key(p.get(path)): p.get(path) for p in _points(choices)}.values())
    return sorted(levels) if all(_is_number(level) for level in levels) else levels


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
