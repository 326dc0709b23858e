"""What a comparison keeps of a composition while it runs, and what it makes of it at the end."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from subvene.runner.edits.order import PairOrder, matters, pairs_of
from subvene.runner.experiments.comparison.arms import Arm, Arms
from subvene.runner.experiments.comparison.composition import (
    BOUNDED,
    UNBOUNDED,
    ComposedMetric,
    CompositionSection,
    OrderScores,
    Pair,
    order_scores,
)
from subvene.runner.experiments.results import Condition
from subvene.runner.experiments.rows import Row
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import Composition, ExperimentSpec, composition


class CompositionMeasure:
    """Collects, while the conditions of a composition are measured, what is known of their order."""

    def __init__(self, planned: Composition) -> None:
        self.planned = planned
        self._pairs: list[list[PairOrder]] = []

    @classmethod
    def of(cls, spec: ExperimentSpec) -> CompositionMeasure | None:
        """The composition of an experiment; None if it has none."""
        planned = composition(spec)
        return None if planned is None else cls(planned)

    def look(self, condition: str, arm: Arm, arms: Arms) -> None:
        """Look at the edits of one arm; those of the first order say which pairs commute."""
        if condition == next(iter(self.planned.orders)) and arm.variant is not None:
            self._pairs.append(compiled_pairs(arms.compiled(arm.variant, arm.fitted)))

    def section(self, table: Sequence[Row], cells: Sequence[Condition]) -> CompositionSection:
        """What the results say of the composition.

        Args:
            table: of the comparison.
            cells: of the comparison.
        """
        pairs = [_over_fits(alike) for alike in zip(*self._pairs, strict=True)]
        means = {row.condition: {name: metric.mean for name, metric in row.metrics.items()} for row in table}
        by_cell: dict[tuple[int | None, int | None], dict[str, dict[str, float]]] = {}
        for cell in cells:
            values = {name: metric.mean for name, metric in cell.metrics.items()}
            by_cell.setdefault((cell.seed, cell.fold), {})[cell.name] = values
        orders, metrics = self.planned.orders, {}
        found = (name for row in table for name in row.metrics)
        for metric in dict.fromkeys((*BOUNDED, *UNBOUNDED, *found)):
            together = _order_scores(metric, orders, means)
            if together is None:
                continue
            each = (
                _order_scores(metric, orders, measured, seed=seed, fold=fold)
                for (seed, fold), measured in by_cell.items()
            )
            metrics[metric] = ComposedMetric(
                together=together,
                alone={name: means.get(name, {}).get(metric) for name in self.planned.names},
                baseline=means.get(self.planned.conditions[0].name, {}).get(metric),
                cells=tuple(scores for scores in each if scores is not None),
            )
        return CompositionSection(
            interventions=self.planned.names,
            orders=orders,
            metrics=metrics,
            pairs=tuple(Pair.model_validate(pair) for pair in pairs),
            order_can_matter=matters(pairs),
        )


def compiled_pairs(m: IntervenedModel) -> list[PairOrder]:
    """`pairs_of` for interventions that are compiled onto a model."""
    compiled = m.intervenable.interventions
    edits = [
        {site: compiled[key] for site, key in zip(entry.sites, entry.keys, strict=True)}
        for entry in m.intervenable.entries
    ]
    return pairs_of(m.spec, edits)


def _order_scores(
    metric: str, orders: Collection[str], measured: Mapping[str, Mapping[str, float]], **place: int | None
) -> OrderScores | None:
    values = {order: measured.get(order, {}).get(metric) for order in orders}
    known = {order: value for order, value in values.items() if value is not None}
    return order_scores(metric, known, **place) if len(known) == len(orders) else None


def _over_fits(found: Sequence[PairOrder]) -> PairOrder:
    """One pair, as it is in each seed and fold: it commutes if it does in all of them."""
    for answer in (False, None):
        alike = [pair for pair in found if pair["commutes"] is answer]
        if alike:
            share = f"; in {len(alike)} of {len(found)} fits" if len(alike) < len(found) else ""
            return {**alike[0], "reason": alike[0]["reason"] + share}
    return found[0]
