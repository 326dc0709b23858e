"""What `subvene run` prints of a localization experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from subvene.runner.cli._units import UnitStory
from subvene.runner.files.printable import on_line
from subvene.runner.reports.console import print_wide

if TYPE_CHECKING:
    from subvene.runner.experiments.results import Results


class LocalizationStory(UnitStory):
    """Units by arm; the table of arms, random draws together, and the verdict."""

    def _place(self, unit: Mapping[str, object]) -> str:
        return str(unit["what"])

    def _finished(self, results: Results) -> None:
        from rich.text import Text

        from subvene.runner.experiments.localization.section import section_of
        from subvene.runner.experiments.rows import METRICS
        from subvene.runner.reports.localization_arms import (
            by_group,
            group_label,
            heads_in_words,
            known,
            metrics_of,
        )

        groups = by_group(results)
        metrics = metrics_of(results)
        lines = []
        for group, arms in groups.items():
            # Below the mean of several: a second and a third line in every cell.
            several = len(arms) > 1
            values = [known([arm.value(metric) for arm in arms]) for metric in metrics]
            label = on_line(group_label(group, len(arms))) + ("\n  lowest\n  highest" if several else "")
            lines.append((label, [heads_in_words(arms), *(_in_words(some, several) for some in values)]))
        print_wide(self.console, "arm", ["heads", *(METRICS[metric] for metric in metrics)], lines)
        if any(len(arms) > 1 for arms in groups.values()):
            self.console.print("× n: the mean of n arms, their lowest and their highest", highlight=False)
        for said in section_of(results).verdict:
            self.console.print(Text(f"- {on_line(said)}"), soft_wrap=True, highlight=False)


def _in_words(values: Sequence[float], several: bool) -> str:
    if not values:
        return "–"
    shown = (sum(values) / len(values), min(values), max(values)) if several else (values[0],)
    return "\n".join(f"{value:.3f}" for value in shown)
