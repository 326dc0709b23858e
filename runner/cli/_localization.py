"""What `subvene run` prints of a localization experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from subvene.runner.cli._units import UnitStory
from subvene.runner.files.printable import on_line

if TYPE_CHECKING:
    from subvene.runner.experiments.results import Results
    from subvene.runner.experiments.study import UnitTold


class LocalizationStory(UnitStory):
    """Units by arm; the table of arms, random draws together, and the verdict."""

    def _place(self, unit: UnitTold) -> str:
        return str(unit["what"])

    def _finished(self, results: Results) -> None:
        from rich.text import Text

        from subvene.runner.experiments.localization.section import section_of
        from subvene.runner.reports.console import print_table
        from subvene.runner.reports.localization_arms import by_group, group_label, metrics_of
        from subvene.runner.reports.localization_tables import arms_table

        groups = by_group(results)
        named = [(group_label(group, len(arms)), arms) for group, arms in groups.items()]
        print_table(self.console, arms_table(named, metrics_of(results), chosen=False))
        if any(len(arms) > 1 for arms in groups.values()):
            self.console.print("× n: the mean of n arms, their lowest and their highest", highlight=False)
        for said in section_of(results).verdict:
            self.console.print(Text(f"- {on_line(said)}"), soft_wrap=True, highlight=False)
