"""What `subvene run` prints of a persona experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from subvene.runner.cli._units import UnitStory

if TYPE_CHECKING:
    from subvene.runner.experiments.results import Results
    from subvene.runner.experiments.study import UnitTold


class PersonaStory(UnitStory):
    """Units by trait; for each trait what was kept, what was chosen, and the table of conditions."""

    def _place(self, unit: UnitTold) -> str:
        return f"{unit['trait']}: {unit['what']}"

    def _finished(self, results: Results) -> None:
        from rich.text import Text

        from subvene.runner.reports.console import print_table
        from subvene.runner.reports.persona_tables import at, choices_of, conditions_table, section_of

        choices = choices_of(results)
        for name, trait in section_of(results).traits.items():
            self.console.print()
            self.console.print(Text(name, style="bold underline"))
            found = trait.extraction
            dropped = ", ".join(f"{reason} {count}" for reason, count in found.dropped.items())
            kept = f"{found.kept} of {found.pairs} pairs of responses kept"
            self.console.print(kept + (f" (dropped: {dropped})" if dropped else ""), highlight=False)
            if (chosen := at(choices.get(name))) is not None and trait.steering is not None:
                self.console.print(
                    f"chosen by {choices[name].metric}: layer {chosen[0]}, coefficient {chosen[1]:g} "
                    f"({trait.steering.unit})",
                    highlight=False,
                )
            if conditions := [one for one in results.conditions if one.group == name]:
                print_table(self.console, conditions_table(conditions, of_one=True))
        for note in results.notes:
            self.console.print(f"warning: {note}", style="yellow", soft_wrap=True, highlight=False)
