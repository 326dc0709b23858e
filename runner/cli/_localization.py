"""What `subvene run` prints of a localization experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from subvene.runner.cli._units import UnitStory
from subvene.runner.files.printable import on_line

if TYPE_CHECKING:
    from subvene.runner.experiments.results import Results
    from subvene.runner.reports.localization_arms import Arm

_NUMBER = len("00.000")
_BETWEEN = len(" │ ")


class LocalizationStory(UnitStory):
    """Units by arm; the table of arms, random draws together, and the verdict."""

    def _place(self, unit: Mapping[str, Any]) -> str:
        return str(unit["what"])

    def _finished(self, results: Results) -> None:
        from rich.text import Text

        from subvene.runner.experiments.localization.section import section_of
        from subvene.runner.reports.localization_arms import (
            by_group,
            group_label,
            heads_in_words,
            metrics_of,
        )

        groups = by_group(results)
        labels = {group: on_line(group_label(group, len(arms))) for group, arms in groups.items()}
        heads = {group: heads_in_words(arms) for group, arms in groups.items()}
        widths = [max(map(len, labels.values())), max(map(len, ("heads", *heads.values())))]
        for metrics in self._in_tables(metrics_of(results), sum(widths) + _BETWEEN):
            self._table(groups, labels, heads, metrics)
        if any(len(arms) > 1 for arms in groups.values()):
            self.console.print("× n: the mean of n arms, their lowest and their highest", highlight=False)
        for said in section_of(results).verdict:
            self.console.print(Text(f"- {on_line(said)}"), soft_wrap=True, highlight=False)

    def _in_tables(self, metrics: Sequence[str], taken: int) -> list[list[str]]:
        """The metrics in as many tables as they need not to be cut, at the console's width."""
        from subvene.runner.experiments.rows import METRICS

        tables: list[list[str]] = []
        left = 0
        for metric in metrics:
            width = _BETWEEN + max(_NUMBER, len(METRICS[metric]))
            if not tables or width > left:
                tables.append([])
                left = self.console.width - taken
            tables[-1].append(metric)
            left -= width
        return tables

    def _table(
        self,
        groups: Mapping[str, Sequence[Arm]],
        labels: Mapping[str, str],
        heads: Mapping[str, str],
        metrics: Sequence[str],
    ) -> None:
        from rich.table import Table
        from rich.text import Text

        from subvene.runner.experiments.rows import METRICS
        from subvene.runner.reports.localization_arms import known

        table = Table(show_edge=False, pad_edge=False)
        table.add_column("arm", no_wrap=True)
        for column in ("heads", *(METRICS[metric] for metric in metrics)):
            table.add_column(column, justify="right", no_wrap=True)
        for group, arms in groups.items():
            # Below the mean of several: a second and a third line in every cell.
            several = len(arms) > 1
            found = [known([arm.value(metric) for arm in arms]) for metric in metrics]
            label = labels[group] + ("\n  lowest\n  highest" if several else "")
            table.add_row(Text(label), heads[group], *(_in_words(values, several) for values in found))
        self.console.print()
        self.console.print(table)


def _in_words(values: Sequence[float], several: bool) -> str:
    if not values:
        return "–"
    shown = (sum(values) / len(values), min(values), max(values)) if several else (values[0],)
    return "\n".join(f"{value:.3f}" for value in shown)
