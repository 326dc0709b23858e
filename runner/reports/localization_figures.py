"""Figures of a localization experiment: draws beside the probed set, what is won against what it costs.

All of them are seen on a light and on a dark page, and no arm is told from another by its colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import plotly.graph_objects as go

from subvene.runner.reports.curves import COLORS, LEGEND_WIDTH, REFERENCE, as_it_stands, figure, with_legend
from subvene.runner.reports.localization_arms import Arm, arm_label, group_label, known, metric_label
from subvene.runner.reports.styles import Style

STYLES = {
    "baseline": Style(REFERENCE, "diamond", "dash"),
    "iti_probed": Style(COLORS[0], "star", "dot"),
    "iti_random": Style(COLORS[5], "circle", "dot"),
    "edit_probed": Style(COLORS[1], "star-square", "solid"),
    "edit_random": Style(COLORS[4], "square", "solid"),
    "iti_matched": Style(COLORS[5], "triangle-down", "dash"),
    "edit_matched": Style(COLORS[4], "triangle-left", "dash"),
    "edit_single": Style(COLORS[2], "triangle-up", "dash"),
    "edit_all": Style(COLORS[3], "pentagon", "dashdot"),
    "lora": Style(COLORS[3], "x", "longdash"),
}
"""How the groups of arms look; ITI is blue, edits of chosen heads are orange."""
_OTHER = Style(REFERENCE, "hexagon", "dot")
_FEWEST_FOR_BARS = 5
# Of a figure with another one beside it, in pixels.
WHOLE_WIDTH = 1000
"""What a legend may take of a figure that has none beside it, in pixels."""

Groups = Mapping[str, Sequence[Arm]]


def look(group: str) -> Style:
    """The look of a group of arms."""
    return STYLES.get(group, _OTHER)


def draws(
    values: Sequence[float | None],
    metric: str,
    group: str,
    marks: Mapping[str, float | None],
    prediction: Sequence[float] | None = None,
    level: float | None = None,
    each: str = "each draw",
) -> go.Figure | None:
    """The values of a group's arms as a histogram with a tick for each, and where others lie among them.

    Args:
        values: of the arms, in their order; None where one was not measured.
        metric: what the values are of.
        group: of the arms.
        marks: group → value, which is marked by a vertical line.
        prediction: where one further draw is expected.
        level: how surely.
        each: what a tick is.

    Returns:
        None without any value.
    """
    numbered = [(i, value) for i, value in enumerate(values, 1) if value is not None]
    found = [value for _, value in numbered]
    if not found:
        return None
    barred = len(found) >= _FEWEST_FOR_BARS and min(found) < max(found)
    made = figure(x=metric_label(metric), y="count" if barred else "", height=360 if barred else 300)
    style, name = look(group), as_it_stands(group_label(group, len(found)))
    if barred:
        made.add_trace(_bars(found, style, name))
    rows = [each]
    if prediction is not None:
        rows.append("prediction")
        made.add_trace(_predicted(prediction, style, level))
    made.add_trace(
        go.Scatter(
            x=found,
            y=[0] * len(found),
            yaxis="y2",
            mode="markers",
            marker={"symbol": "line-ns", "size": 14, "line": {"width": 2, "color": style.color}},
            name=name,
            showlegend=not barred,
            text=[f"{each.removeprefix('each ')} {i}" for i, _ in numbered],
            hovertemplate="%{text}: %{x:.4f}<extra></extra>",
        )
    )
    for other, value in marks.items():
        if value is not None:
            made.add_trace(_line(other, value))
    share = 0.11 * len(rows)
    made.update_layout(
        bargap=0,
        xaxis={"anchor": "y2", "range": _range(found, known(list(marks.values())), prediction)},
        yaxis={"domain": [share + 0.06, 1], "visible": barred, "rangemode": "tozero"},
        yaxis2={
            "domain": [0, share if barred else 0.8],
            "anchor": "x",
            "range": [-0.6, len(rows) - 0.4],
            "tickvals": list(range(len(rows))),
            "ticktext": rows,
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
        },
        # The lines go through both: an axis of its own, from the foot of the ticks to the top.
        yaxis3={"domain": [0, 1], "anchor": "x", "range": [0, 1], "visible": False},
    )
    if barred:
        most = max(made.data[0].y)
        made.update_layout(yaxis_dtick=max(1, math.ceil(most / 4)))
    return with_legend(made)


def against(
    groups: Groups,
    x: Callable[[Arm], float | None],
    y: Callable[[Arm], float | None],
    titles: tuple[str, str],
    metrics: tuple[str | None, str | None] = (None, None),
    height: int = 420,
    legend_width: int | None = None,
) -> go.Figure | None:
    """A mark for each arm; what stands alone in its group has its bootstrap intervals as bars.

    Args:
        groups: the arms, by group.
        x: of an arm.
        y: of an arm.
        titles: of the two axes.
        metrics: whose intervals are drawn along each axis; None for no bars.
        height: in pixels.
        legend_width: in pixels; None for a figure with another one beside it.

    Returns:
        None unless something beside the untouched model has both.
    """
    made = figure(x=titles[0], y=titles[1], height=height)
    acting = False
    # What stands alone is drawn last, on top of the many.
    for group, arms in sorted(groups.items(), key=lambda pair: len(pair[1]) == 1):
        drawn = [arm for arm in arms if x(arm) is not None and y(arm) is not None]
        if not drawn:
            continue
        acting = acting or group != "baseline"
        style, alone = look(group), len(arms) == 1
        made.add_trace(
            go.Scatter(
                x=[x(arm) for arm in drawn],
                y=[y(arm) for arm in drawn],
                error_x=_error(drawn[0], metrics[0]) if alone else None,
                error_y=_error(drawn[0], metrics[1]) if alone else None,
                mode="markers",
                marker={
                    "color": style.color,
                    "symbol": style.symbol,
                    "size": 14 if alone else 8,
                    "opacity": 1 if alone else 0.75,
                },
                name=as_it_stands(group_label(group, len(drawn))),
                legendrank=1000 + list(groups).index(group),
                text=[as_it_stands(arm_label(arm)) for arm in drawn],
                hovertemplate=f"%{{text}}<br>{titles[0]} %{{x:.4f}}<br>{titles[1]} %{{y:.4f}}<extra></extra>",
            )
        )
    return with_legend(made, legend_width or LEGEND_WIDTH) if acting else None


def training_curves(groups: Groups, field: Literal["loss", "accuracy"], title: str) -> go.Figure | None:
    """A validation measure by step: a line for each arm, the kept step of those alone in their group ringed.

    Args:
        groups: the arms, by group.
        field: of an evaluation.
        title: of the upward axis.
    """
    made = figure(x="step", y=title, height=400)
    kept: list[tuple[int, float]] = []
    every: list[float] = []
    for group, arms in groups.items():
        style, named = look(group), False
        for arm in arms:
            training = arm.record.training
            looks = () if training is None else training.evaluations
            points = [(one.step, value) for one in looks if (value := getattr(one, field)) is not None]
            if training is None or not points:
                continue
            every += [value for _, value in points]
            if len(arms) == 1:
                kept += [point for point in points if point[0] == training.best_step]
            made.add_trace(
                go.Scatter(
                    x=[step for step, _ in points],
                    y=[value for _, value in points],
                    mode="lines+markers",
                    line={"color": style.color, "dash": style.dash, "width": 2.5 if len(arms) == 1 else 1},
                    marker={"symbol": style.symbol, "size": 9 if len(arms) == 1 else 5},
                    opacity=1 if len(arms) == 1 else 0.6,
                    name=as_it_stands(group_label(group, len(arms))),
                    legendgroup=group,
                    showlegend=not named,
                    hovertemplate=f"{as_it_stands(arm_label(arm))}, step %{{x}}: %{{y:.4f}}<extra></extra>",
                )
            )
            named = True
    if not every:
        return None
    if kept:
        made.add_trace(
            go.Scatter(
                x=[step for step, _ in kept],
                y=[value for _, value in kept],
                mode="markers",
                marker={"size": 14, "symbol": "circle-open", "color": REFERENCE, "line": {"width": 1.5}},
                name="kept",
                hoverinfo="skip",
            )
        )
    # A loss of IPO begins at (1/(2τ))², which is 25 for the smallest τ and 1 for the largest.
    if min(every) > 0 and max(every) / min(every) > 20:
        made.update_yaxes(type="log", dtick=1)
    return with_legend(made)


def _bars(values: Sequence[float], style: Style, name: str) -> go.Bar:
    counts, edges = np.histogram(values, bins=min(12, math.ceil(2 * math.sqrt(len(values)))))
    return go.Bar(
        x=((edges[:-1] + edges[1:]) / 2).tolist(),
        y=counts.tolist(),
        width=np.diff(edges).tolist(),
        marker={"color": style.color, "opacity": 0.55, "line": {"color": style.color, "width": 1.5}},
        name=name,
        customdata=[list(pair) for pair in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)],
        hovertemplate="%{customdata[0]:.4f} to %{customdata[1]:.4f}: %{y}<extra></extra>",
    )


def _predicted(prediction: Sequence[float], style: Style, level: float | None) -> go.Scatter:
    return go.Scatter(
        x=list(prediction),
        y=[1, 1],
        yaxis="y2",
        mode="lines+markers",
        line={"color": style.color, "width": 3},
        marker={"symbol": "line-ns", "size": 12, "line": {"width": 3, "color": style.color}},
        name="prediction interval" + ("" if level is None else f", {level:.0%}"),
        hovertemplate="prediction interval: %{x:.4f}<extra></extra>",
    )


def _line(group: str, value: float) -> go.Scatter:
    style, name = look(group), as_it_stands(group_label(group))
    return go.Scatter(
        x=[value, value],
        y=[0, 0.97],
        yaxis="y3",
        mode="lines+markers",
        cliponaxis=False,
        line={"color": style.color, "dash": style.dash, "width": 2.5},
        marker={"symbol": style.symbol, "size": [0, 12], "color": style.color, "opacity": 1},
        name=name,
        hovertemplate=f"{name}: %{{x:.4f}}<extra></extra>",
    )


def _range(
    values: Sequence[float], marks: Sequence[float], prediction: Sequence[float] | None
) -> list[float]:
    """Everything that is drawn; of a prediction interval from very few draws, which is huge, only a part."""
    low, high = min([*values, *marks]), max([*values, *marks])
    span = (high - low) or 0.1 * abs(high) or 1.0
    if prediction is not None:
        low, high = (
            min(low, max(prediction[0], low - 3 * span)),
            max(high, min(prediction[1], high + 3 * span)),
        )
    room = 0.06 * ((high - low) or span)
    return [low - room, high + room]


def _error(arm: Arm, metric: str | None) -> dict[str, object] | None:
    interval = None if metric is None else arm.interval(metric)
    value = None if metric is None else arm.value(metric)
    if interval is None or value is None:
        return None
    bars = {"array": [max(0.0, interval[1] - value)], "arrayminus": [max(0.0, value - interval[0])]}
    return {"type": "data", "symmetric": False, "thickness": 1, "width": 4, **bars}
