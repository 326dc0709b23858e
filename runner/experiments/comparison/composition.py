"""Composition: what becomes of each metric when interventions act together, in every order.

After "Composable Interventions for Language Models" (Kolbeinsson et al., 2025, arXiv:2407.06483), for a
metric M in [0, 1] of which more is better, over the orders o of the same interventions:

* order-free error = 1 − max_o M(o): what is still wrong when the better order is taken;
* order sensitivity = |M(a, b) − M(b, a)|; of more than two orders max_o M(o) − min_o M(o).

CE and KL have no upper bound, hence no error of that kind: in its place stands their own value in the best
order, min_o M(o), and the sensitivity is in their own unit. M is the metric of the comparison's table, a mean
over seeds and folds; `cells` has the same for each of these alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from subvene.runner.edits.order import ELSEWHERE
from subvene.runner.experiments.results import Record
from subvene.runner.experiments.rows import LOWER_IS_BETTER, METRICS

SECTION = "composition"
UNBOUNDED = ("ce", "kl")
BOUNDED = tuple(metric for metric in METRICS if metric not in UNBOUNDED)


class OrderScores(Record):
    """Order-free error and order sensitivity of one metric.

    Attributes:
        orders: name of each order → the metric.
        best_order: the first of equals.
        best: its value.
        order_free_error: None for an unbounded metric.
        order_sensitivity: how far the best and the worst order are apart.
        seed: of the cell that this is of; None where it is of all.
        fold: likewise.
    """

    orders: dict[str, float]
    best_order: str
    best: float
    order_free_error: float | None
    order_sensitivity: float
    seed: int | None = None
    fold: int | None = None


class ComposedMetric(Record):
    """One metric of a composition.

    Attributes:
        together: over all seeds and folds.
        alone: name of each intervention → the metric with it alone; None where it was not measured.
        baseline: of the untouched model.
        cells: each seed and fold alone.
    """

    together: OrderScores
    alone: dict[str, float | None]
    baseline: float | None
    cells: tuple[OrderScores, ...]


class Pair(Record):
    """What is known, before anything is measured, of the order of two interventions.

    Attributes:
        first: name of the one.
        second: name of the other.
        shared: sites that both edit.
        commutes: None where it cannot be told.
        reason: why.
    """

    first: str
    second: str
    shared: tuple[str, ...]
    commutes: bool | None
    reason: str


class CompositionSection(Record):
    """What becomes of each metric when interventions act together, in every order.

    Attributes:
        interventions: their names.
        orders: name → the interventions in it.
        metrics: by name.
        pairs: of interventions.
        order_can_matter: None where it cannot be told.
    """

    interventions: tuple[str, ...]
    orders: dict[str, tuple[str, ...]]
    metrics: dict[str, ComposedMetric]
    pairs: tuple[Pair, ...]
    order_can_matter: bool | None


def order_scores(
    metric: str, values: Mapping[str, float], *, seed: int | None = None, fold: int | None = None
) -> OrderScores:
    """Order-free error and order sensitivity of one metric.

    Args:
        metric: its name, any.
        values: name of each order → the metric.
        seed: of the cell that they are of; None where they are of all.
        fold: likewise.
    """
    better = min if metric in LOWER_IS_BETTER else max
    best = better(values, key=lambda order: values[order])
    return OrderScores(
        orders=dict(values),
        best_order=best,
        best=values[best],
        order_free_error=1 - values[best] if metric in BOUNDED else None,
        order_sensitivity=max(values.values()) - min(values.values()),
        seed=seed,
        fold=fold,
    )


def composition_lines(composed: CompositionSection) -> list[dict[str, str | int | float | None]]:
    """The lines of `composition.csv`: each metric over all seeds and folds, then for each of these."""
    return [
        {
            "metric": metric,
            "seed": "" if scores.seed is None else scores.seed,
            "fold": "" if scores.fold is None else scores.fold,
            "order_free_error": scores.order_free_error,
            "order_sensitivity": scores.order_sensitivity,
            "best_order": scores.best_order,
            "best": scores.best,
            **scores.orders,
        }
        for metric, measured in composed.metrics.items()
        for scores in (measured.together, *measured.cells)
    ]


def pair_in_words(pair: Pair) -> str:
    """One pair of interventions and what is known of its order without running the model."""
    both = f"{pair.first} and {pair.second}"
    if pair.reason == ELSEWHERE:
        return f"{both}: {ELSEWHERE}, whatever the file says"
    if pair.commutes is None:
        return f"{both}: {pair.reason}"
    said = "commute" if pair.commutes else "do not commute"
    return f"{both} {said} at {', '.join(pair.shared)} ({pair.reason})"


def expectation(composed: CompositionSection) -> str:
    """What the pairs let one expect of the order sensitivity."""
    return {
        True: "so the order can matter",
        False: "so no order can differ from another by more than rounding",
        None: "so it cannot be told beforehand whether the order matters",
    }[composed.order_can_matter]
