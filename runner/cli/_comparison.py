"""What `subvene run` prints of a comparison of conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from subvene.runner.cli._units import UnitStory

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
        from subvene.runner.reports.console import print_table
        from subvene.runner.reports.tables import notes, results_table

        print_table(self.console, results_table(results))
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
