"""Heat maps: of heads by layer, and of anything else by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import plotly.graph_objects as go


def layer_heat_map(
    z: Sequence[Sequence[float | None]],
    layers: Sequence[int],
    rows: Sequence[str],
    *,
    of: str,
    around_zero: bool = False,
) -> go.Figure:
    """A number for each row and layer, the first row on top.

    Args:
        z: [rows][layers]; None where nothing was measured.
        layers: 0-based.
        rows: what each row is of.
        of: what the numbers are, beside the scale.
        around_zero: give effects of either sign colours of their own.
    """
    colours: dict[str, object] = {"colorscale": "Viridis"}
    if around_zero:
        largest = max((abs(value) for row in z for value in row if value is not None), default=1.0)
        colours = {"colorscale": "RdBu", "zmin": -largest, "zmax": largest}
    made = go.Figure(
        go.Heatmap(
            z=[list(row) for row in z],
            x=list(layers),
            y=list(rows),
            colorbar={"title": {"text": of}},
            hovertemplate="%{y}, layer %{x}: %{z:.4f}<extra></extra>",
            **colours,
        )
    )
    made.update_layout(
        xaxis={"title": {"text": "layer"}, **layer_ticks(layers)},
        yaxis={"autorange": "reversed", "automargin": True, "type": "category"},
        height=150 + 26 * len(rows),
        margin={"t": 24, "b": 56},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    return made


def probe_heat_map(
    accuracies: Sequence[Sequence[float]],
    chosen: Mapping[str, Iterable[int]] | Mapping[int, Iterable[int]] | None = None,
    title: str = "Probe accuracy on validation questions",
    *,
    chance: float | None = None,
) -> go.Figure:
    """How well each head tells true from false answers, layer by layer.

    Args:
        accuracies: [n_layers][n_heads], each from 0 to 1, as a fit's provenance holds them.
        chosen: layer → heads that are shifted, which are outlined; layers may be text, as JSON has them.
        title: of the figure.
        chance: the share of the commoner label, where the scale begins; None: at the lowest accuracy.

    Raises:
        ValueError: layers differ in their number of heads, or a chosen head is not among them.
    """
    n_layers, n_heads = len(accuracies), len(accuracies[0]) if accuracies else 0
    if any(len(row) != n_heads for row in accuracies):
        raise ValueError("expected as many heads in every layer")
    figure = go.Figure(
        go.Heatmap(
            z=[list(row) for row in accuracies],
            zmin=chance,
            # plotly.js takes a lower bound only together with an upper one.
            zmax=max(max(row) for row in accuracies),
            colorscale="Viridis",
            colorbar={"title": {"text": "accuracy"}, "tickformat": ".0%"},
            hovertemplate="layer %{y}, head %{x}: %{z:.1%}<extra></extra>",
        )
    )
    places = [(int(layer), head) for layer, heads in (chosen or {}).items() for head in heads]
    for layer, head in places:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise ValueError(f"layer {layer}, head {head}: not among {n_layers} layers of {n_heads} heads")
    if places:
        figure.add_trace(
            go.Scatter(
                x=[head for _, head in places],
                y=[layer for layer, _ in places],
                mode="markers",
                # A ring that is seen on every colour of the scale.
                marker={"symbol": "circle-open", "size": 9, "color": "#d7191c", "line": {"width": 2}},
                name="shifted",
                hoverinfo="skip",
            )
        )
    figure.update_layout(
        title={"text": title},
        xaxis={"title": {"text": "head"}, "dtick": max(1, n_heads // 16), "constrain": "domain"},
        yaxis={"title": {"text": "layer"}, "dtick": max(1, n_layers // 16)},
        height=max(320, 140 + 16 * n_layers),
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=bool(places),
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )
    return figure


def layer_ticks(layers: Sequence[int]) -> dict[str, object]:
    """Ticks at layers only."""
    if len(layers) <= 12:
        return {"tickmode": "array", "tickvals": list(layers)}
    return {"dtick": layer_step(layers)}


def layer_step(layers: Sequence[int]) -> int:
    """How many layers lie between two ticks."""
    return max(1, -(-len(layers) // 12))
