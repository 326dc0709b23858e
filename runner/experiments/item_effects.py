"""Effects item by item: the share of items that a condition moves the wrong way.

A mean may rise while many items fall (Tan et al. 2024, arXiv:2407.12404, who call these anti-steerable). An
item is a question, text or pair; its value is the mean over its rollouts, seeds and folds, and the wrong way
is away from what the table calls better. Intervals are Wilson's, of a share of items. KL is left out: it is 0
for the untouched model, so that every edit makes it larger.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

from pydantic import Field

from subvene.runner.experiments.results import Condition, Record, Results
from subvene.runner.experiments.rows import by_label, is_lower_better
from subvene.runner.files.statistics import share_interval

ITEM_EFFECTS = "item_effects"
LEVEL = 0.95


class Effect(Record):
    """How a condition moves the items of a metric, from the first condition.

    Attributes:
        wrong: the share of items that it makes worse.
        low: lower bound of that share.
        high: upper bound.
        same: the share of items that it leaves as they are.
        items: over how many.
    """

    wrong: float
    low: float
    high: float
    same: float
    items: int


class ItemEffects(Record):
    """The effects of a comparison.

    Attributes:
        level: of the intervals.
        against: the label of the condition that items are moved from; None without conditions.
        rows: label → metric → effect.
    """

    level: float = LEVEL
    against: str | None = None
    rows: dict[str, dict[str, Effect]] = Field(default={})


def item_effects_of(cells: Sequence[Condition]) -> ItemEffects:
    """The effects of every row and metric that shares two items or more with the first row.

    Args:
        cells: the conditions of a comparison, one a seed and fold.
    """
    values = {
        label: _values(own)
        for label, own in by_label(cells).items()
        if not any(cell.not_finite or cell.out_of_reach for cell in own)
    }
    against = next(iter(by_label(cells)), None)
    first = {} if against is None else values.get(against, {})
    rows: dict[str, dict[str, Effect]] = {}
    for label, by_metric in values.items():
        for metric, by_item in by_metric.items() if label != against else ():
            shared = [key for key in by_item if key in first.get(metric, {})]
            if len(shared) > 1:
                changes = [by_item[key] - first[metric][key] for key in shared]
                rows.setdefault(label, {})[metric] = _effect(changes, is_lower_better(metric))
    return ItemEffects(against=against, rows=rows)


def item_effects_in(results: Results) -> ItemEffects:
    """Those that results hold; none where they hold none, as of an earlier version."""
    return results.section(ITEM_EFFECTS, ItemEffects) or ItemEffects()


def _values(cells: Iterable[Condition]) -> dict[str, dict[str, float]]:
    """Metric → item → the mean of its values; metrics without items are left out."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        for item in cell.items:
            for metric, value in item.scores.items():
                if value is not None and metric != "kl" and metric in cell.metrics:
                    found[metric][item.key].append(float(value))
    return {metric: {key: fmean(all_of) for key, all_of in by.items()} for metric, by in found.items()}


def _effect(changes: Sequence[float], lower_is_better: bool) -> Effect:
    n = len(changes)
    wrong = sum((change > 0) if lower_is_better else (change < 0) for change in changes)
    low, high = share_interval(wrong, n, LEVEL)
    same = sum(change == 0 for change in changes) / n
    return Effect(wrong=wrong / n, low=low, high=high, same=same, items=n)
