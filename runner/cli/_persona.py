"""What `subvene run` prints of a persona experiment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from subvene.runner.cli._units import UnitStory
from subvene.runner.cli._wide import print_wide

if TYPE_CHECKING:
    from subvene.runner.experiments.results import Condition, Metric, Results
    from subvene.runner.experiments.study import UnitTold


class PersonaStory(UnitStory):
    """Units by trait; for each trait what was kept, what was chosen, and the table of conditions."""

    def _place(self, unit: UnitTold) -> str:
        return f"{unit['trait']}: {unit['what']}"

    def _finished(self, results: Results) -> None:
        from rich.text import Text

        from subvene.runner.reports.persona_tables import at, choices_of, section_of

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
                self._table(conditions)
        for note in results.notes:
            self.console.print(f"warning: {note}", style="yellow", soft_wrap=True, highlight=False)

    def _table(self, conditions: Sequence[Condition]) -> None:
        heads = ("score", "coher.", "proj.", "CE", "KL", "acc.", "n")
        lines = []
        digits = {"score": 1, "coherence": 1, "projection": 2, "ce": 3, "kl": 3, "accuracy": 2}
        for row in conditions:
            cells = [_in_words(row.metrics.get(name), n) for name, n in digits.items()]
            if row.not_finite is not None:
                cells[0] = "not finite"
            lines.append((row.label, [*cells, str(row.counts["responses"])]))
        print_wide(self.console, "condition", heads, lines)


def _in_words(metric: Metric | None, digits: int) -> str:
    if metric is None:
        return "–"
    return f"{metric.mean:.{digits}f}" + ("" if metric.sd is None else f"\n± {metric.sd:.{digits}f}")
