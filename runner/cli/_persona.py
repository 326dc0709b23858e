"""What `subvene run` prints of a persona experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from subvene.runner.cli._units import UnitStory


class PersonaStory(UnitStory):
    """Units by trait; for each trait what was kept, what was chosen, and the table of conditions."""

    def _place(self, unit: Mapping[str, Any]) -> str:
        return f"{unit['trait']}: {unit['what']}"

    def _finished(self, results: Mapping[str, Any]) -> None:
        from rich.text import Text

        for name, trait in results["traits"].items():
            self.console.print()
            self.console.print(Text(name, style="bold underline"))
            found = trait["extraction"]
            dropped = ", ".join(f"{reason} {count}" for reason, count in found["dropped"].items())
            kept = f"{found['kept']} of {found['pairs']} pairs of responses kept"
            self.console.print(kept + (f" (dropped: {dropped})" if dropped else ""), highlight=False)
            best = trait["chosen"]
            if best is not None:
                self.console.print(
                    f"chosen by {best['by']}: layer {best['layer']}, coefficient {best['coefficient']:g} "
                    f"({trait['unit']})",
                    highlight=False,
                )
            if trait["conditions"]:
                self._table(trait["conditions"])
        for warning in results["warnings"]:
            self.console.print(f"warning: {warning}", style="yellow", soft_wrap=True, highlight=False)

    def _table(self, conditions: Any) -> None:
        from rich.table import Table

        table = Table("condition", show_edge=False, pad_edge=False)
        for column in ("score", "coher.", "proj.", "CE", "KL", "acc.", "n"):
            table.add_column(column, justify="right")
        for row in conditions:
            cost = row["cost"] or {}
            table.add_row(
                row["label"],
                "not finite" if "not_finite" in row else _in_words(row["score"], row["score_sd"], 1),
                _in_words(row["coherence"], row["coherence_sd"], 1),
                _in_words(row["projection"], row["projection_sd"], 2),
                _in_words(cost.get("ce"), None, 3),
                _in_words(cost.get("kl"), None, 3),
                _in_words(cost.get("accuracy"), None, 2),
                str(row["n"]),
            )
        self.console.print(table)


def _in_words(mean: float | None, sd: float | None, digits: int) -> str:
    if mean is None:
        return "–"
    return f"{mean:.{digits}f}" + ("" if sd is None else f"\n± {sd:.{digits}f}")
