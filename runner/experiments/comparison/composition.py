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
from typing import Any

from subvene.runner.edits.order import ELSEWHERE
from subvene.runner.experiments.comparison.summary import LOWER_IS_BETTER, METRICS

UNBOUNDED = LOWER_IS_BETTER
BOUNDED = tuple(metric for metric in METRICS if metric not in UNBOUNDED)


def order_scores(metric: str, values: Mapping[str, float]) -> dict[str, Any]:
    """Order-free error and order sensitivity of one metric.

    Args:
        metric: its name, one of `BOUNDED` or `UNBOUNDED`.
        values: name of each order → the metric.

    Returns:
        `orders` (the values), `best_order` (the first of equals), `best` (its value), `order_free_error`
        (None for an unbounded metric) and `order_sensitivity`.
    """
    better = max if metric in BOUNDED else min
    best = better(values, key=lambda order: values[order])
    return {
        "orders": dict(values),
        "best_order": best,
        "best": values[best],
        "order_free_error": 1 - values[best] if metric in BOUNDED else None,
        "order_sensitivity": max(values.values()) - min(values.values()),
    }


def composition_lines(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of `composition.csv`: each metric over all seeds and folds, then for each of these.

    Args:
        found: `results["composition"]`.
    """
    lines = []
    for metric, scores in found["metrics"].items():
        for place in ({**scores, "seed": "", "fold": ""}, *scores["cells"]):
            lines.append(
                {"metric": metric, "seed": place["seed"], "fold": place["fold"]}
                | {
                    name: place[name]
                    for name in ("order_free_error", "order_sensitivity", "best_order", "best")
                }
                | place["orders"]
            )
    return lines


def pair_in_words(pair: Mapping[str, Any]) -> str:
    """One pair of interventions and what is known of its order without running the model."""
    both = f"{pair['first']} and {pair['second']}"
    if pair["reason"] == ELSEWHERE:
        return f"{both}: {ELSEWHERE}, whatever the file says"
    if pair["commutes"] is None:
        return f"{both}: {pair['reason']}"
    where = ", ".join(pair["shared"])
    said = "commute" if pair["commutes"] else "do not commute"
    return f"{both} {said} at {where} ({pair['reason']})"


def expectation(found: Mapping[str, Any]) -> str:
    """What the pairs let one expect of the order sensitivity."""
    return {
        True: "so the order can matter",
        False: "so no order can differ from another by more than rounding",
        None: "so it cannot be told beforehand whether the order matters",
    }[found["order_can_matter"]]
