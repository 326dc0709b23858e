"""The report's section on a composition: what the order of interventions does to each metric."""

from __future__ import annotations

from collections.abc import Sequence

from subvene.runner.experiments.comparison.composition import (
    BOUNDED,
    SECTION,
    CompositionSection,
    OrderScores,
    expectation,
    pair_in_words,
)
from subvene.runner.experiments.results import Results
from subvene.runner.experiments.rows import METRICS
from subvene.runner.reports.markup import Html, element, items, join, table

ABOUT = (
    "Order-free error: 1 minus the metric in its best order, so what is still wrong when the better order is "
    "taken. Order sensitivity: how far the best and the worst order are apart. Less is better of both "
    "(Kolbeinsson et al., 2025). CE and KL have no upper bound: their value in the best order stands in the "
    "error's place, and their sensitivity is in nats per token."
)
"""What the two numbers are."""


def composition(results: Results) -> Html | None:
    """Each metric in every order, with order-free error and order sensitivity, beside what commutes."""
    composed = results.section(SECTION, CompositionSection)
    if composed is None or not composed.metrics:
        return None
    orders, alone = list(composed.orders), composed.interventions
    heads = ["baseline", *alone, *(name.replace("_then_", " → ") for name in orders)]
    lines = [
        [
            METRICS[metric],
            *(number(value) for value in (measured.baseline, *(measured.alone[name] for name in alone))),
            *(number(measured.together.orders[order]) for order in orders),
            error(metric, measured.together),
            sensitivity(measured.together),
        ]
        for metric, measured in composed.metrics.items()
    ]
    columns = ["Metric", *heads, "Order-free error ↓", "Order sensitivity ↓"]
    caption = "The untouched model, each intervention alone, and all of them in every order"
    cells = max(len(measured.cells) for measured in composed.metrics.values())
    parts = [element("p", ABOUT), table(caption, columns, lines, class_="numbers")]
    if cells > 1:
        lines = [
            [
                METRICS[metric],
                span([cell.order_sensitivity for cell in measured.cells]),
                str(len({cell.best_order for cell in measured.cells})),
            ]
            for metric, measured in composed.metrics.items()
            if measured.cells
        ]
        caption = f"The same for each of {cells} cells (seed and fold) alone"
        parts.append(table(caption, ["Metric", "Order sensitivity", "Different best orders"], lines))
    known = items(*(pair_in_words(pair) for pair in composed.pairs))
    parts += [
        element(
            "p", "What the edits themselves tell, before anything is measured: ", expectation(composed), "."
        ),
        known,
    ]
    return join(parts)


def number(value: float | None) -> str:
    """Three digits, or a dash where nothing was measured."""
    return "–" if value is None else f"{value:.3f}"


def error(metric: str, scores: OrderScores) -> str:
    """The order-free error, or the best value of a metric that has none."""
    if metric in BOUNDED:
        return number(scores.order_free_error)
    return f"best {number(scores.best)}"


def span(values: Sequence[float]) -> str:
    """The smallest and the largest."""
    return f"{min(values):.3g} – {max(values):.3g}"


def sensitivity(scores: OrderScores) -> str:
    """The order sensitivity; 0 only where it is exactly that."""
    return f"{scores.order_sensitivity:.3g}"
