"""What `subvene run` prints of a comparison of conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from subvene.runner.cli._units import UnitStory
from subvene.runner.cli._wide import print_wide

if TYPE_CHECKING:
    from subvene.runner.experiments.comparison.composition import CompositionSection
    from subvene.runner.experiments.results import Results
    from subvene.runner.experiments.study import UnitTold


class ComparisonStory(UnitStory):
    """Units by condition, seed and fold; the table of conditions."""

    def _place(self, unit: UnitTold) -> str:
        return f"{unit['condition']} seed {unit['seed']} fold {unit['fold']}: {unit['what']}"

    def _finished(self, results: Results) -> None:
        from subvene.runner.experiments.comparison.composition import SECTION, CompositionSection
        from subvene.runner.experiments.rows import METRICS, in_words, metrics_used, rows
        from subvene.runner.reports.tables import notes

        table = rows(results.conditions)
        used = metrics_used(table)
        lines = [
            (
                row.label,
                [
                    in_words(row.metrics.get(m)).replace(" ± ", "\n± ")
                    if row.not_finite is None
                    else "not finite"
                    for m in used
                ],
            )
            for row in table
        ]
        print_wide(self.console, "condition", [METRICS[metric] for metric in used], lines)
        for note in notes(results):
            self.console.print(f"- {note}", soft_wrap=True)
        if composed := results.section(SECTION, CompositionSection):
            self._composition(composed)

    def _composition(self, composed: CompositionSection) -> None:
        from rich.table import Table

        from subvene.runner.experiments.comparison.composition import expectation, pair_in_words
        from subvene.runner.experiments.rows import METRICS
        from subvene.runner.reports.composition import ABOUT, error, sensitivity

        table = Table("composition", show_edge=False, pad_edge=False)
        for heading in ("order-free error", "order sensitivity"):
            table.add_column(heading, justify="right")
        table.add_column("best order")
        for metric, measured in composed.metrics.items():
            scores = measured.together
            best = scores.best_order if scores.order_sensitivity else "all alike"
            table.add_row(METRICS[metric], error(metric, scores), sensitivity(scores), best)
        self.console.print()
        self.console.print(table)
        for note in (ABOUT, *map(pair_in_words, composed.pairs), expectation(composed)):
            self.console.print(f"- {note}", soft_wrap=True)
