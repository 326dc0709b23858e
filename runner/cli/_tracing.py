"""What `subvene run` prints of a tracing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from subvene.runner.cli._units import UnitStory

if TYPE_CHECKING:
    from subvene.runner.experiments.results import Results


class TracingStory(UnitStory):
    """Units by fact and site; the largest effect of every role."""

    def _place(self, unit: Mapping[str, Any]) -> str:
        return str(unit["what"])

    def _finished(self, results: Results) -> None:
        from rich.table import Table

        from subvene.runner.experiments.tracing.section import tracing_of
        from subvene.runner.reports.tracing import PEAK_COLUMNS, notes, peak_lines, title

        for trace in tracing_of(results).traces:
            for metric in trace.metrics:
                table = Table(
                    title=title(trace, metric), show_edge=False, pad_edge=False, title_justify="left"
                )
                for i, column in enumerate(PEAK_COLUMNS):
                    table.add_column(column, justify="left" if i < 2 else "right")
                for line in peak_lines(trace, metric):
                    table.add_row(*line)
                self.console.print(table)
                self.console.print()
        for note in notes(results):
            self.console.print(f"- {note}", soft_wrap=True)
