"""Figures of a persona run: the sweep, what it costs, projections, and how the vectors lie to each other.

All of them are seen on a light and on a dark page, and no line is told from another by its colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from subvene.runner.experiments.persona.section import Edit, SweepPoint
from subvene.runner.experiments.results import Condition, Metric, QuestionText
from subvene.runner.reports import curves
from subvene.runner.reports.curves import COLORS, REFERENCE, as_it_stands
from subvene.runner.reports.persona_tables import coefficient_of

At = tuple[int, float] | None
"""Layer and coefficient that were chosen; None where none were."""
Matrix = Sequence[Sequence[float | None]]

_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "x", "star")
_DASHES = ("solid", "dash", "dot", "dashdot")
SCORES = (0.0, 100.0)
# A mark at either end is seen whole.
_SCORE_AXIS = {"range": [-4, 104], "tickvals": [0, 25, 50, 75, 100]}
_TEXT_IN_CELLS = 10
# Of a figure with another one beside it, in pixels.


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


def condition_styles(conditions: Iterable[Condition]) -> dict[str, Style]:
    """A look for every condition, by its label; the untouched model is grey."""
    found: dict[str, Style] = {}
    for condition in conditions:
        acting = sum(style_.color != REFERENCE for style_ in found.values())
        untouched = Edit.of(condition).kind == "baseline"
        found[condition.label] = Style(REFERENCE, "diamond") if untouched else style(acting)
    return found


def score_by_coefficient(sweep: Sequence[SweepPoint], chosen: At, coefficient: str) -> go.Figure:
    """The trait's score and, on a second axis, coherence against the coefficient; a line for each layer.

    Args:
        sweep: one entry a layer and coefficient.
        chosen: the point that was taken, which is ringed.
        coefficient: what the axis is called.
    """
    made = _figure(x=coefficient, y="trait score", height=400)
    by_layer = _by(sweep, "layer")
    for (layer, points), look in zip(by_layer.items(), _in_order(len(by_layer)), strict=True):
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
        yaxis=_SCORE_AXIS,
        yaxis2={
            **_SCORE_AXIS,
            "title": {"text": "coherence"},
            "overlaying": "y",
            "side": "right",
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
        },
    )
    return curves.with_legend(made)


def score_by_layer(sweep: Sequence[SweepPoint], chosen: At) -> go.Figure | None:
    """The trait's score against the layer, a line for each coefficient; None for a single layer."""
    layers = sorted({point.layer for point in sweep})
    if len(layers) < 2:
        return None
    made = _figure(x="layer", y="trait score", height=400)
    by_coefficient = dict(sorted(_by(sweep, "coefficient").items()))
    looks = _about_zero(list(by_coefficient))
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
    made.update_xaxes(**_whole(layers))
    made.update_yaxes(**_SCORE_AXIS)
    made.update_layout(legend={"title": {"text": "coefficient "}})
    return curves.with_legend(made)


def contrast_by_coefficient(sweep: Sequence[SweepPoint], coefficient: str) -> go.Figure | None:
    """The judge-free contrast against the coefficient, a line for each layer; None if it was not measured."""
    if all(point.contrast is None for point in sweep):
        return None
    made = _figure(x=coefficient, y="log-probability contrast, nats per token", height=360)
    by_layer = _by(sweep, "layer")
    for (layer, points), look in zip(by_layer.items(), _in_order(len(by_layer)), strict=True):
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
    return curves.with_legend(made)


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
    made = _figure(x=coefficient, y=y, height=340)
    if bounds is not None:
        _bound(made, bounds)
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
    return curves.with_legend(made)


def score_against_kl(conditions: Mapping[str, Sequence[Condition]]) -> go.Figure | None:
    """Every condition with a cost: its score against its KL, a colour for each trait; None without two."""
    measured = {
        name: [c for c in group if c.value("kl") is not None and c.value("score") is not None]
        for name, group in conditions.items()
    }
    if sum(map(len, measured.values())) < 2:
        return None
    made = _figure(x="KL(original ‖ edited), nats per token", y="trait score", height=340)
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
    return curves.with_legend(made)


def projection_boxes(conditions: Sequence[Condition], looks: Mapping[str, Style]) -> go.Figure | None:
    """Projections of the responses on the trait's vector, a box for each condition; None without any."""
    by_label = {c.label: found for c in conditions if (found := _projections(c))}
    if not by_label:
        return None
    made = _figure(x="projection on the vector", y="", height=120 + 46 * len(by_label))
    for label, found in by_label.items():
        made.add_trace(
            go.Box(
                x=found,
                name=as_it_stands(label),
                orientation="h",
                boxpoints="all",
                jitter=0.5,
                pointpos=0,
                line={"width": 1.5},
                marker={"color": looks[label].color, "size": 4, "opacity": 0.6},
                fillcolor="rgba(0,0,0,0)",
            )
        )
    made.update_layout(showlegend=False, margin={"t": 40})
    # The table's order, from above.
    made.update_yaxes(autorange="reversed", showgrid=False)
    return made


def projection_scatter(
    conditions: Sequence[Condition], looks: Mapping[str, Style], questions: Mapping[str, QuestionText]
) -> go.Figure | None:
    """The judge's score of a response against its projection; None without any score."""
    made = _figure(x="projection on the vector", y="trait score", height=400)
    for condition in conditions:
        label, look = condition.label, looks[condition.label]
        points = [
            item
            for item in condition.items
            if item.scores.get("score") is not None and item.scores.get("projection") is not None
        ]
        if not points:
            continue
        made.add_trace(
            go.Scatter(
                x=[item.scores["projection"] for item in points],
                y=[item.scores["score"] for item in points],
                text=[as_it_stands(_shortened(questions[item.key].question)) for item in points],
                hovertemplate="%{text}<br>projection %{x:.3f}, score %{y:.1f}<extra></extra>",
                name=as_it_stands(label),
                mode="markers",
                marker={"size": 8, "symbol": look.symbol, "color": look.color, "opacity": 0.8},
            )
        )
    made.update_yaxes(**_SCORE_AXIS)
    return curves.with_legend(made) if made.data else None


def cosine_map(names: Sequence[str], cosines: Matrix) -> go.Figure:
    """Cosines between traits, as a heat map with the numbers in it if they have room."""
    shown = [as_it_stands(name) for name in names]
    made = _heat_map(shown, shown, cosines, "%{y}, %{x}: %{z:.3f}<extra></extra>")
    if len(names) <= _TEXT_IN_CELLS:
        made.update_traces(texttemplate="%{z:.2f}")
    made.update_layout(height=160 + 44 * len(names))
    made.update_xaxes(type="category")
    made.update_yaxes(type="category")
    return made


def layer_map(layers: Sequence[int], cosines: Matrix) -> go.Figure:
    """Cosines between the vectors of one trait at different layers, as a heat map."""
    made = _heat_map(list(layers), list(layers), cosines, "layers %{y} and %{x}: %{z:.3f}<extra></extra>")
    made.update_layout(height=420)
    made.update_xaxes(title={"text": "layer"}, dtick=_step(layers))
    made.update_yaxes(title={"text": "layer"}, dtick=_step(layers))
    return made


def by_layer(
    lines: Mapping[str, tuple[Sequence[int], Sequence[float | None]]],
    y: str,
    marked: int | None,
    bounds: Sequence[float] | None = None,
) -> go.Figure | None:
    """A number for each layer, one line a name.

    Args:
        lines: by name, the layers and their values.
        y: what the number is called.
        marked: a layer with a line across the figure.
        bounds: the least and the greatest that the number can be, which the axis then shows.

    Returns:
        None if there is no value.
    """
    values = [value for _, found in lines.values() for value in found if value is not None]
    if not values:
        return None
    made = _figure(x="layer", y=y, height=360)
    for i, (name, (layers, found)) in enumerate(lines.items()):
        look = style(i)
        made.add_trace(
            go.Scatter(
                x=list(layers),
                y=list(found),
                name=as_it_stands(name),
                mode="lines+markers",
                line={"color": look.color, "width": 1.5, "dash": look.dash},
                marker={"size": 6, "symbol": look.symbol},
                hovertemplate="%{fullData.name}, layer %{x}: %{y:.4g}<extra></extra>",
            )
        )
    made.update_xaxes(**_whole(sorted({layer for layers, _ in lines.values() for layer in layers})))
    # Norms grow manyfold with depth, and at a few layers all at once.
    if bounds is not None:
        _bound(made, bounds)
    elif min(values) > 0 and max(values) / min(values) > 20:
        made.update_yaxes(type="log", dtick=1)
    if marked is not None:
        made.add_vline(x=marked, line={"color": REFERENCE, "dash": "dash", "width": 1.5})
    return curves.with_legend(made)


def mean_of(metric: Metric | None) -> float | None:
    """A metric's mean; None without one."""
    return None if metric is None else metric.mean


def signed(coefficient: float) -> str:
    """`+2`, `−0.5`, `0`."""
    return f"{coefficient:+g}".replace("-", "−") if coefficient else "0"


def _figure(*traces: Any, x: str, y: str, height: int = 420) -> go.Figure:
    return curves.figure(*traces, x=x, y=y, height=height)


def _heat_map(xs: Sequence[Any], ys: Sequence[Any], cosines: Matrix, hover: str) -> go.Figure:
    made = _figure(
        go.Heatmap(
            x=list(xs),
            y=list(ys),
            z=[list(row) for row in cosines],
            zmin=-1,
            zmax=1,
            colorscale="RdBu",
            reversescale=True,
            colorbar={"title": {"text": "cosine"}, "outlinewidth": 0},
            hovertemplate=hover,
            hoverongaps=False,
        ),
        x="",
        y="",
    )
    made.update_layout(margin={"t": 44})
    made.update_xaxes(showgrid=False, constrain="domain")
    # As a matrix is written: the first row above.
    made.update_yaxes(showgrid=False, autorange="reversed", constrain="domain")
    return made


def _bound(made: go.Figure, bounds: Sequence[float]) -> None:
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


def _in_order(n: int) -> list[Style]:
    """Looks of things in an order, such as layers: few are told apart by hue, many by a scale."""
    if n <= len(COLORS):
        return [style(i) for i in range(n)]
    # Neither end of the scale: one is lost on a dark page, the other on a white one.
    colors = sample_colorscale("Viridis", [0.2 + 0.65 * i / (n - 1) for i in range(n)])
    return [Style(color, _SYMBOLS[i % len(_SYMBOLS)]) for i, color in enumerate(colors)]


def _about_zero(values: Sequence[float]) -> dict[float, Style]:
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


def _in_words(point: SweepPoint) -> str:
    said = [f"layer {point.layer}, coefficient {signed(point.coefficient)}"]
    for name, metric in (("score", point.score), ("coherence", point.coherence)):
        spread = "" if metric is None or metric.sd is None else f" ± {metric.sd:.1f}"
        said.append(f"{name} " + ("–" if metric is None else f"{metric.mean:.1f}") + spread)
    said.append(f"{point.n} responses, {point.refused} refused")
    return "<br>".join(said)


def _projections(condition: Condition) -> list[float]:
    values = (item.scores.get("projection") for item in condition.items)
    return [value for value in values if value is not None]


def _shortened(text: str, most: int = 70) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _whole(layers: Sequence[int]) -> dict[str, Any]:
    """Ticks at layers only."""
    if len(layers) <= 12:
        return {"tickmode": "array", "tickvals": list(layers)}
    return {"dtick": _step(layers)}


def _step(layers: Sequence[int]) -> int:
    return max(1, -(-len(layers) // 12))
