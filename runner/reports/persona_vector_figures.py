"""Figures of a persona run's vectors: projections of the responses, cosines, and numbers by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from subvene.runner.experiments.persona.section import Edit
from subvene.runner.experiments.results import Condition, QuestionText
from subvene.runner.reports.curves import REFERENCE, as_it_stands, figure, with_legend
from subvene.runner.reports.figures import layer_step, layer_ticks
from subvene.runner.reports.persona_figures import SCORE_AXIS, show_bounds
from subvene.runner.reports.styles import Style, style

Matrix = Sequence[Sequence[float | None]]
_TEXT_IN_CELLS = 10


def condition_styles(conditions: Iterable[Condition]) -> dict[str, Style]:
    """A look for every condition, by its label; the untouched model is grey."""
    found: dict[str, Style] = {}
    for condition in conditions:
        acting = sum(style_.color != REFERENCE for style_ in found.values())
        untouched = Edit.of(condition).kind == "baseline"
        found[condition.label] = Style(REFERENCE, "diamond") if untouched else style(acting)
    return found


def projection_boxes(conditions: Sequence[Condition], looks: Mapping[str, Style]) -> go.Figure | None:
    """Projections of the responses on the trait's vector, a box for each condition; None without any."""
    by_label = {c.label: found for c in conditions if (found := _projections(c))}
    if not by_label:
        return None
    made = figure(x="projection on the vector", y="", height=120 + 46 * len(by_label))
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
    made = figure(x="projection on the vector", y="trait score", height=400)
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
    made.update_yaxes(**SCORE_AXIS)
    return with_legend(made) if made.data else None


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
    made.update_xaxes(title={"text": "layer"}, dtick=layer_step(layers))
    made.update_yaxes(title={"text": "layer"}, dtick=layer_step(layers))
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
    made = figure(x="layer", y=y, height=360)
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
    made.update_xaxes(**layer_ticks(sorted({layer for layers, _ in lines.values() for layer in layers})))
    # Norms grow manyfold with depth, and at a few layers all at once.
    if bounds is not None:
        show_bounds(made, bounds)
    elif min(values) > 0 and max(values) / min(values) > 20:
        made.update_yaxes(type="log", dtick=1)
    if marked is not None:
        made.add_vline(x=marked, line={"color": REFERENCE, "dash": "dash", "width": 1.5})
    return with_legend(made)


def _heat_map(xs: Sequence[Any], ys: Sequence[Any], cosines: Matrix, hover: str) -> go.Figure:
    made = figure(
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


def _projections(condition: Condition) -> list[float]:
    values = (item.scores.get("projection") for item in condition.items)
    return [value for value in values if value is not None]


def _shortened(text: str, most: int = 70) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
