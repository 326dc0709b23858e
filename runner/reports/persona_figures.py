"""Figures of a persona run's sweep and of what steering costs; `persona_vector_figures` has the vectors'.

All of them are seen on a light and on a dark page, and no line is told from another by its colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import plotly.graph_objects as go

from subvene.runner.experiments.persona.section import Edit, SweepPoint
from subvene.runner.experiments.results import Condition, Metric
from subvene.runner.reports.curves import REFERENCE, as_it_stands, figure, with_legend
from subvene.runner.reports.figures import layer_ticks
from subvene.runner.reports.persona_tables import coefficient_of
from subvene.runner.reports.styles import about_zero, in_order, style

At = tuple[int, float] | None
"""Layer and coefficient that were chosen; None where none were."""

SCORES = (0.0, 100.0)
# A mark at either end is seen whole.
SCORE_AXIS = {"range": [-4, 104], "tickvals": [0, 25, 50, 75, 100]}


def score_by_coefficient(sweep: Sequence[SweepPoint], chosen: At, coefficient: str) -> go.Figure:
    """The trait's score and, on a second axis, coherence against the coefficient; a line for each layer.

    Args:
        sweep: one entry a layer and coefficient.
        chosen: the point that was taken, which is ringed.
        coefficient: what the axis is called.
    """
    made = figure(x=coefficient, y="trait score", height=400)
    by_layer = _by(sweep, "layer")
    for (layer, points), look in zip(by_layer.items(), in_order(len(by_layer)), strict=True):
        points = sorted(points, key=lambda point: point.coefficient)
        common = {
            "x": [point.coefficient for point in points],
            "legendgroup": str(layer),
            "text": [_in_words(point) for point in points],
            "hovertemplate": "%{text}<extra></extra>",
            "mode": "lines+markers",
        }
        made.add_trace(
            go.Scatter(
                y=[mean_of(point.score) for point in points],
                name=f"layer {layer}",
                line={"color": look.color, "width": 2},
                marker={"size": 9, "symbol": look.symbol},
                **common,
            )
        )
        made.add_trace(
            go.Scatter(
                y=[mean_of(point.coherence) for point in points],
                yaxis="y2",
                name=f"layer {layer}, coherence",
                showlegend=False,
                line={"color": look.color, "width": 1.5, "dash": "dot"},
                marker={"size": 5, "symbol": look.symbol},
                opacity=0.75,
                **common,
            )
        )
    # What solid and dotted mean, without a mark in the figure.
    for name, dash in (("score", "solid"), ("coherence (right)", "dot")):
        line = {"color": REFERENCE, "dash": dash}
        made.add_trace(go.Scatter(x=[None], y=[None], mode="lines", line=line, name=name, hoverinfo="skip"))
    if chosen is not None:
        here = [p for p in sweep if (p.layer, p.coefficient) == chosen]
        _ring(made, [(p.coefficient, mean_of(p.score)) for p in here])
    made.update_layout(
        margin={"r": 60},
        yaxis=SCORE_AXIS,
        yaxis2={
            **SCORE_AXIS,
            "title": {"text": "coherence"},
            "overlaying": "y",
            "side": "right",
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
        },
    )
    return with_legend(made)


def score_by_layer(sweep: Sequence[SweepPoint], chosen: At) -> go.Figure | None:
    """The trait's score against the layer, a line for each coefficient; None for a single layer."""
    layers = sorted({point.layer for point in sweep})
    if len(layers) < 2:
        return None
    made = figure(x="layer", y="trait score", height=400)
    by_coefficient = dict(sorted(_by(sweep, "coefficient").items()))
    looks = about_zero(list(by_coefficient))
    for coefficient, points in by_coefficient.items():
        points = sorted(points, key=lambda point: point.layer)
        look = looks[coefficient]
        made.add_trace(
            go.Scatter(
                x=[point.layer for point in points],
                y=[mean_of(point.score) for point in points],
                text=[_in_words(point) for point in points],
                hovertemplate="%{text}<extra></extra>",
                name=signed(coefficient),
                mode="lines+markers",
                line={"color": look.color, "width": 2, "dash": look.dash},
                marker={"size": 9, "symbol": look.symbol},
            )
        )
    if chosen is not None:
        here = [p for p in sweep if (p.layer, p.coefficient) == chosen]
        _ring(made, [(p.layer, mean_of(p.score)) for p in here])
    made.update_xaxes(**layer_ticks(layers))
    made.update_yaxes(**SCORE_AXIS)
    made.update_layout(legend={"title": {"text": "coefficient "}})
    return with_legend(made)


def contrast_by_coefficient(sweep: Sequence[SweepPoint], coefficient: str) -> go.Figure | None:
    """The judge-free contrast against the coefficient, a line for each layer; None if it was not measured."""
    if all(point.contrast is None for point in sweep):
        return None
    made = figure(x=coefficient, y="log-probability contrast, nats per token", height=360)
    by_layer = _by(sweep, "layer")
    for (layer, points), look in zip(by_layer.items(), in_order(len(by_layer)), strict=True):
        points = sorted(points, key=lambda point: point.coefficient)
        made.add_trace(
            go.Scatter(
                x=[point.coefficient for point in points],
                y=[point.contrast for point in points],
                name=f"layer {layer}",
                mode="lines+markers",
                line={"color": look.color, "width": 2},
                marker={"size": 9, "symbol": look.symbol},
                hovertemplate=f"layer {layer}, coefficient %{{x}}: %{{y:.4f}}<extra></extra>",
            )
        )
    return with_legend(made)


def along_coefficient(
    conditions: Mapping[str, Sequence[Condition]],
    metric: str,
    coefficient: str,
    y: str,
    bounds: Sequence[float] | None = None,
) -> go.Figure | None:
    """A measure of the steered conditions, and of the baseline at 0, a line for each trait.

    Args:
        conditions: by trait.
        metric: its name.
        coefficient: what the axis is called.
        y: what the axis calls it.
        bounds: the least and the greatest that it can be, which the axis then shows.

    Returns:
        None unless some trait has it for two coefficients.
    """
    lines: dict[str, list[tuple[float, float, str]]] = {}
    for name, group in conditions.items():
        found = [
            (
                0.0 if kind == "baseline" else coefficient_of(condition),
                condition.value(metric),
                condition.label,
            )
            for condition in group
            if (kind := Edit.of(condition).kind) in ("baseline", "steered")
        ]
        lines[name] = sorted(
            (x, measured, label) for x, measured, label in found if x is not None and measured is not None
        )
    if all(len({x for x, _, _ in line}) < 2 for line in lines.values()):
        return None
    made = figure(x=coefficient, y=y, height=340)
    if bounds is not None:
        show_bounds(made, bounds)
    for i, (name, line) in enumerate(lines.items()):
        look = style(i)
        made.add_trace(
            go.Scatter(
                x=[x for x, _, _ in line],
                y=[measured for _, measured, _ in line],
                text=[as_it_stands(f"{name}, {label}") for _, _, label in line],
                hovertemplate="%{text}: %{y:.4g}<extra></extra>",
                name=as_it_stands(name),
                mode="lines+markers",
                line={"color": look.color, "width": 2, "dash": look.dash},
                marker={"size": 9, "symbol": look.symbol},
            )
        )
    return with_legend(made)


def score_against_kl(conditions: Mapping[str, Sequence[Condition]]) -> go.Figure | None:
    """Every condition with a cost: its score against its KL, a colour for each trait; None without two."""
    measured = {
        name: [c for c in group if c.value("kl") is not None and c.value("score") is not None]
        for name, group in conditions.items()
    }
    if sum(map(len, measured.values())) < 2:
        return None
    made = figure(x="KL(original ‖ edited), nats per token", y="trait score", height=340)
    for i, (name, group) in enumerate(measured.items()):
        look = style(i)
        made.add_trace(
            go.Scatter(
                x=[condition.value("kl") for condition in group],
                y=[condition.value("score") for condition in group],
                text=[as_it_stands(f"{name}, {condition.label}") for condition in group],
                hovertemplate="%{text}<br>KL %{x:.4g}, score %{y:.1f}<extra></extra>",
                name=as_it_stands(name),
                mode="markers",
                marker={"size": 10, "symbol": look.symbol, "color": look.color},
            )
        )
    return with_legend(made)


def mean_of(metric: Metric | None) -> float | None:
    """A metric's mean; None without one."""
    return None if metric is None else metric.mean


def signed(coefficient: float) -> str:
    """`+2`, `−0.5`, `0`."""
    return f"{coefficient:+g}".replace("-", "−") if coefficient else "0"


def show_bounds(made: go.Figure, bounds: Sequence[float]) -> None:
    """Show on the y axis the least and the greatest that can be, with a little room about them."""
    room = 0.04 * (bounds[1] - bounds[0])
    made.update_yaxes(range=[bounds[0] - room, bounds[1] + room])


def _ring(made: go.Figure, places: Iterable[tuple[float, float | None]]) -> None:
    seen = [(x, y) for x, y in places if y is not None]
    made.add_trace(
        go.Scatter(
            x=[x for x, _ in seen],
            y=[y for _, y in seen],
            mode="markers",
            marker={"size": 18, "symbol": "circle-open", "color": REFERENCE, "line": {"width": 3}},
            name="chosen",
            hoverinfo="skip",
        )
    )


def _by(points: Sequence[SweepPoint], field: str) -> dict[Any, list[SweepPoint]]:
    def key(point: SweepPoint) -> Any:
        return getattr(point, field)

    return {value: list(group) for value, group in groupby(sorted(points, key=key), key=key)}


def _in_words(point: SweepPoint) -> str:
    said = [f"layer {point.layer}, coefficient {signed(point.coefficient)}"]
    for name, metric in (("score", point.score), ("coherence", point.coherence)):
        spread = "" if metric is None or metric.sd is None else f" ± {metric.sd:.1f}"
        said.append(f"{name} " + ("–" if metric is None else f"{metric.mean:.1f}") + spread)
    said.append(f"{point.n} responses, {point.refused} refused")
    return "<br>".join(said)
