"""What `subvene run` prints of a comparison of conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from subvene.runner.cli._units import UnitStory


class ComparisonStory(UnitStory):
    """Units by condition, seed and fold; the table of conditions."""

    def _place(self, unit: Mapping[str, Any]) -> str:
        return f"{unit['condition']} seed {unit['seed']} fold {unit['fold']}: {unit['what']}"

    def _finished(self, results: Mapping[str, Any]) -> None:
        from rich.table import Table

        from subvene.runner.experiments.comparison.summary import METRICS, in_words
        from subvene.runner.reports.tables import metrics_used, notes

        table = Table("condition", show_edge=False, pad_edge=False)
        used = metrics_used(results["rows"])
        for metric in used:
            table.add_column(METRICS[metric], justify="right")
        for row in results["rows"]:
            values = [in_words(row["metrics"].get(m)).replace(" ± ", "\n± ") for m in used]
            table.add_row(row["label"], *(["not finite"] * len(used) if "not_finite" in row else values))
        self.console.print()
        self.console.print(table)
        for note in notes(results):
            self.console.print(f"- {note}", soft_wrap=True)
        if results.get("composition"):
            self._composition(results["composition"])

    def _composition(self, found: Mapping[str, Any]) -> None:
        from rich.table import Table

        from subvene.runner.experiments.comparison.composition import expectation, pair_in_words
        from subvene.runner.experiments.comparison.summary import METRICS
        from subvene.runner.reports.composition import ABOUT, error, sensitivity

        table = Table("composition", show_edge=False, pad_edge=False)
        for heading in ("order-free error", "order sensitivity"):
            table.add_column(heading, justify="right")
        table.add_column("best order")
        for metric, scores in found["metrics"].items():
            best = scores["best_order"] if scores["order_sensitivity"] else "all alike"
            table.add_row(METRICS[metric], error(metric, scores), sensitivity(scores), best)
        self.console.print()
        self.console.print(table)
        for note in (ABOUT, *map(pair_in_words, found["pairs"]), expectation(found)):
            self.console.print(f"- {note}", soft_wrap=True)
