"""What `subvene run` prints of a tracing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from subvene.runner.cli._units import UnitStory

if TYPE_CHECKING:
    from subvene.runner.experiments.results import Results
    from subvene.runner.experiments.study import UnitTold


class TracingStory(UnitStory):
    """Units by fact and site; the largest effect of every role."""

    def _place(self, unit: UnitTold) -> str:
        return str(unit["what"])

    def _finished(self, results: Results) -> None:
        from rich.table import Table

        from subvene.runner.experiments.tracing.section import tracing_of
        from subvene.runner.reports import patching
        from subvene.runner.reports.tracing import PEAK_COLUMNS, notes, peak_lines, title

        for trace in tracing_of(results).traces:
            metric = trace.metrics[0]
            self.console.print(title(trace, metric), soft_wrap=True)
            for site in trace.sites:
                table = Table(title=site.name, show_edge=False, pad_edge=False, title_justify="left")
                for i, column in enumerate(PEAK_COLUMNS[1:]):
                    table.add_column(column, justify="right" if i else "left")
                for name, *line in peak_lines(trace, metric):
                    if name == site.name:
                        table.add_row(*line)
                self.console.print()
                self.console.print(table)
            self.console.print()
        for made in (made for one in tracing_of(results).patchings for made in patching.tables(one)):
            self.console.print(made.title, soft_wrap=True)
            table = Table(*(column.head for column in made.columns), show_edge=False, pad_edge=False)
            for cells in made.texts():
                table.add_row(*cells)
            self.console.print(table)
            self.console.print()
        for note in notes(results):
            self.console.print(f"- {note}", soft_wrap=True)
