"""Effects item by item of a comparison: how many items each condition moves the wrong way."""

from __future__ import annotations

from collections.abc import Iterator

from subvene.runner.experiments.item_effects import ItemEffects, item_effects_in
from subvene.runner.experiments.results import Results
from subvene.runner.experiments.rows import METRICS, in_order
from subvene.runner.files.csv_file import csv_text
from subvene.runner.reports.blocks import Document, Items, Table
from subvene.runner.reports.markup import Html, element, join, shown


def item_effects_csv(results: Results) -> str | None:
    """A line for each row and metric; None where there is none."""
    found = item_effects_in(results)
    if not found.rows:
        return None
    return csv_text(
        [
            {"label": label, "metric": metric, **effect.model_dump(), "against": found.against}
            for label, by_metric in found.rows.items()
            for metric, effect in by_metric.items()
        ]
    )


def item_effects_document(results: Results) -> Document:
    """The table, and what it is of; empty where there is none."""
    found = item_effects_in(results)
    return [Table.of(_HEADS, list(_lines(found))), Items((_said(found),))] if found.rows else []


def item_effects(results: Results) -> Html | None:
    """The section of the page."""
    found = item_effects_in(results)
    if not found.rows:
        return None
    return join([element("p", _said(found)), shown(Table.of(_HEADS, list(_lines(found))))])


_HEADS = ["metric", "condition", "wrong way", "interval", "unmoved", "items"]


def _lines(found: ItemEffects) -> Iterator[list[str | int]]:
    for metric in in_order(name for by_metric in found.rows.values() for name in by_metric):
        for label, by_metric in found.rows.items():
            if (effect := by_metric.get(metric)) is not None:
                bounds = f"{effect.low:.3f} to {effect.high:.3f}"
                shares = [f"{effect.wrong:.3f}", bounds, f"{effect.same:.3f}"]
                yield [METRICS[metric], label, *shares, effect.items]


def _said(found: ItemEffects) -> str:
    return (
        f"share of items (questions, texts, pairs) that a condition makes worse than {found.against!r} does, "
        f"with its {found.level:.0%} interval (Wilson); worse is away from what the table calls better, an "
        "item's value the mean over its rollouts, seeds and folds"
    )
