"""Curves of a localization report: what every α and every τ gives, and how far from the original."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import plotly.graph_objects as go

from subvene.runner.experiments.localization.section import CurvePoint, section_of
from subvene.runner.experiments.results import Results
from subvene.runner.experiments.rows import METRICS
from subvene.runner.reports.curves import as_it_stands, figure, point_in_words, with_legend
from subvene.runner.reports.localization_arms import group_label, metric_label
from subvene.runner.reports.localization_figures import look
from subvene.runner.reports.markup import Html, element, join, plot, side_by_side

_AXES = {"strength": "α", "tau": "τ"}
_WHERE = {
    "validation": "On validation questions, by which the point of each arm is chosen",
    "test": "EXPLORATORY, on test questions: nothing is chosen by these, and no p is stated",
}
_DRAWN = ("mc1", "mc2", "true_info")


def curves(results: Results) -> Html | None:
    """Metrics by α and τ, and against KL, of every arm that had several points."""
    every = section_of(results).curves
    parts: list[Html] = []
    for where, said in _WHERE.items():
        points = [one for one in every if one.questions == where]
        made = [
            plot(drawn, f"{METRICS[metric]} by {title}. {said}.{_several(points)}")
            for metric in _DRAWN
            for field, title in _AXES.items()
            if (drawn := by_point(points, field, title, metric)) is not None
        ]
        made += [
            plot(drawn, f"{METRICS[metric]} against KL(original ‖ edited), a mark for each point. {said}.")
            for metric in _DRAWN
            if (drawn := against_kl(points, metric)) is not None
        ]
        parts += [element("h3", said), side_by_side(*made)] if made else []
    return join(parts) if parts else None


def by_point(points: Sequence[CurvePoint], field: str, title: str, metric: str) -> go.Figure | None:
    """A metric along the points of each group: the mean of its arms, with the lowest and the highest.

    Args:
        points: of arms.
        field: of a point.
        title: what the field is called.
        metric: what is drawn upwards.

    Returns:
        None where no group has several values of the field.
    """
    lines: dict[tuple[str, str], dict[float, list[float]]] = {}
    for one in points:
        x = one.point.get(field)
        if not isinstance(x, int | float) or metric not in one.metrics:
            continue
        rest = point_in_words({name: value for name, value in one.point.items() if name != field})
        lines.setdefault((one.group, rest), {}).setdefault(float(x), []).append(one.metrics[metric])
    lines = {key: values for key, values in lines.items() if len(values) > 1}
    if not lines:
        return None
    made = figure(x=title, y=metric_label(metric))
    for (group, rest), by_x in lines.items():
        xs, style = sorted(by_x), look(group)
        mean = [fmean(by_x[x]) for x in xs]
        spread = {
            "type": "data",
            "symmetric": False,
            "array": [max(by_x[x]) - m for x, m in zip(xs, mean, strict=True)],
            "arrayminus": [m - min(by_x[x]) for x, m in zip(xs, mean, strict=True)],
            "thickness": 1,
        }
        several = max(map(len, by_x.values()))
        name = ", ".join(filter(None, [group_label(group, several), rest]))
        made.add_trace(
            go.Scatter(
                x=xs,
                y=mean,
                error_y=spread if several > 1 else None,
                mode="lines+markers",
                line={"color": style.color, "dash": style.dash},
                marker={"color": style.color, "symbol": style.symbol, "size": 9},
                name=as_it_stands(name),
                hovertemplate=f"{title} %{{x:g}}: %{{y:.4f}}<extra></extra>",
            )
        )
    return with_legend(made)


def against_kl(points: Sequence[CurvePoint], metric: str) -> go.Figure | None:
    """A metric against KL, a mark for each point of each arm; None where none has both."""
    groups: dict[str, list[CurvePoint]] = {}
    for one in points:
        if "kl" in one.metrics and metric in one.metrics:
            groups.setdefault(one.group, []).append(one)
    if not groups:
        return None
    made = figure(x="KL(original ‖ edited), nats per token", y=metric_label(metric))
    for group, found in groups.items():
        style, arms = look(group), len({one.arm for one in found})
        found = sorted(found, key=lambda one: one.metrics["kl"])
        made.add_trace(
            go.Scatter(
                x=[one.metrics["kl"] for one in found],
                y=[one.metrics[metric] for one in found],
                mode="lines+markers" if arms == 1 else "markers",
                line={"color": style.color, "dash": style.dash},
                marker={"color": style.color, "symbol": style.symbol, "size": 9},
                name=as_it_stands(group_label(group, arms)),
                text=[as_it_stands(f"{one.arm}, {point_in_words(one.point)}") for one in found],
                hovertemplate="%{text}<br>KL %{x:.4f}: %{y:.4f}<extra></extra>",
            )
        )
    return with_legend(made)


def _several(points: Sequence[CurvePoint]) -> str:
    arms = {one.arm for one in points}
    several = len(arms) > len({one.group for one in points})
    return " Of several arms the mean, with the lowest and the highest." if several else ""
