"""The report's section on a composition: what the order of interventions does to each metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from subvene.runner.experiments.comparison.composition import BOUNDED, expectation, pair_in_words
from subvene.runner.experiments.comparison.summary import METRICS
from subvene.runner.reports.markup import Html, element, items, join, table

ABOUT = (
    "Order-free error: 1 minus the metric in its best order, so what is still wrong when the better order is "
    "taken. Order sensitivity: how far the best and the worst order are apart. Less is better of both "
    "(Kolbeinsson et al., 2025). CE and KL have no upper bound: their value in the best order stands in the "
    "error's place, and their sensitivity is in nats per token."
)
"""What the two numbers are."""


def composition(results: Mapping[str, Any]) -> Html | None:
    """Each metric in every order, with order-free error and order sensitivity, beside what commutes."""
    found = results.get("composition")
    if not found or not found["metrics"]:
        return None
    orders, alone = list(found["orders"]), found["interventions"]
    heads = ["baseline", *alone, *(name.replace("_then_", " → ") for name in orders)]
    lines = [
        [
            METRICS[metric],
            *(number(value) for value in (scores["baseline"], *(scores["alone"][name] for name in alone))),
            *(number(scores["orders"][order]) for order in orders),
            error(metric, scores),
            sensitivity(scores),
        ]
        for metric, scores in found["metrics"].items()
    ]
    columns = ["Metric", *heads, "Order-free error ↓", "Order sensitivity ↓"]
    caption = "The untouched model, each intervention alone, and all of them in every order"
    cells = max(len(scores["cells"]) for scores in found["metrics"].values())
    parts = [element("p", ABOUT), table(caption, columns, lines, class_="numbers")]
    if cells > 1:
        lines = [
            [
                METRICS[metric],
                span([cell["order_sensitivity"] for cell in scores["cells"]]),
                str(len({cell["best_order"] for cell in scores["cells"]})),
            ]
            for metric, scores in found["metrics"].items()
            if scores["cells"]
        ]
        caption = f"The same for each of {cells} cells (seed and fold) alone"
        parts.append(table(caption, ["Metric", "Order sensitivity", "Different best orders"], lines))
    known = items(*(pair_in_words(pair) for pair in found["pairs"]))
    parts += [
        element(
            "p", "What the edits themselves tell, before anything is measured: ", expectation(found), "."
        ),
        known,
    ]
    return join(parts)


def number(value: float | None) -> str:
    """Three digits, or a dash where nothing was measured."""
    return "–" if value is None else f"{value:.3f}"


def error(metric: str, scores: Mapping[str, Any]) -> str:
    """The order-free error, or the best value of a metric that has none."""
    if metric in BOUNDED:
        return f"{scores['order_free_error']:.3f}"
    return f"best {scores['best']:.3f}"


def span(values: Sequence[float]) -> str:
    """The smallest and the largest."""
    return f"{min(values):.3g} – {max(values):.3g}"


def sensitivity(scores: Mapping[str, Any]) -> str:
    """The order sensitivity; 0 only where it is exactly that."""
    return f"{scores['order_sensitivity']:.3g}"
