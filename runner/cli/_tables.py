"""Tables and plots of results, drawn from records alone: no model is needed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import JsonValue
from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from subvene.runner.cli._words import receipt_in_words
from subvene.runner.experiments.look.section import coefficient_of, conditions_of, item_of
from subvene.runner.files.printable import on_screen

if TYPE_CHECKING:
    from rich.console import Console

    from subvene.runner.experiments.look.section import Evaluation
    from subvene.runner.experiments.results import Condition, Item, Results

_NARROWEST = 20
"""Columns narrower than this are no longer read as text."""


def print_side_by_side(console: Console, prompt: str, titles: Sequence[str], texts: Sequence[str]) -> None:
    """A prompt, and its answers in columns; one below the other where the terminal is too narrow for that."""
    console.print(Text.assemble(("› ", "bold cyan"), (prompt, "bold")))
    if (console.width - 2) // len(titles) < _NARROWEST:
        for title, text in zip(titles, texts, strict=True):
            console.print(Padding(Text(title, style="cyan"), (0, 2)))
            console.print(Padding(Text(_on_screen(text)), (0, 4)))
        console.print()
    else:
        table = Table(box=box.SIMPLE_HEAD, expand=True, show_edge=False)
        for title in titles:
            table.add_column(Text(title), ratio=1, header_style="cyan", overflow="fold")
        table.add_row(*(Text(_on_screen(text)) for text in texts))
        console.print(Padding(table, (0, 0, 1, 2)))


def print_line(console: Console, label: str, text: str, *, style: str = "cyan", width: int = 9) -> None:
    """A label and a sentence; where the sentence does not fit, it goes on below itself."""
    grid = Table.grid()
    grid.add_column(width=width, no_wrap=True, style=style)
    grid.add_column(overflow="fold")
    grid.add_row(Text(label), Text(text))
    console.print(grid)


def print_receipt(console: Console, receipt: Sequence[Mapping[str, JsonValue]]) -> None:
    """One sentence for each intervention."""
    for one in receipt:
        print_line(console, "receipt", receipt_in_words(one), style="green")


def print_samples(console: Console, results: Results, evaluation: Evaluation) -> None:
    """Answers by coefficient, side by side, and what the run's receipt says."""
    conditions = list(conditions_of(results, evaluation))
    titles = [condition.label for condition in conditions]
    for key in evaluation.keys:
        answers = [_answer(condition, item_of(condition, key)) for condition in conditions]
        print_side_by_side(console, results.questions[key].question, titles, answers)
    print_receipt(console, evaluation.receipt)


def _answer(condition: Condition, item: Item | None) -> str:
    """A sample's response, or why there is none."""
    if item is None or item.text is None:
        return f"(no answer: not finite: {condition.not_finite})"
    return item.text


def print_contrast(console: Console, results: Results, evaluation: Evaluation) -> None:
    """Mean difference in log-probability by coefficient, as a table and as a plot."""
    from subvene.runner.reports.console import print_table
    from subvene.runner.reports.look import contrast_table

    conditions = list(conditions_of(results, evaluation))
    print_table(console, contrast_table(results, evaluation))
    console.print()
    for condition in conditions:
        if condition.not_finite is not None:
            print_line(console, condition.label, f"not finite: {condition.not_finite}", style="yellow")
    values = [(coefficient_of(condition), condition.value(evaluation.name)) for condition in conditions]
    points = [(coefficient, value) for coefficient, value in values if value is not None]
    if len(points) > 1:
        plot = Text(line_plot(points, width=min(console.width - 2, 78)), no_wrap=True)
        plot.highlight_regex("●", "bold cyan")
        console.print(Padding(plot, (0, 0, 0, 2)))
    print_line(console, "receipt", f"{evaluation.tokens_edited} tokens edited", style="green")


def line_plot(points: Sequence[tuple[float, float]], *, width: int, height: int = 13) -> str:
    """A plot in plain text, x the coefficient, without any escape code."""
    import plotext

    xs, ys = [list(axis) for axis in zip(*sorted(points), strict=True)]
    figure = plotext.figure
    figure.clear()
    # Its own limit would be the terminal's height; this is text that may go anywhere.
    plotext.terminal.limit(False, False)
    figure.theme("colorless")
    figure.plot_size(width, height)
    if min(ys) < 0 < max(ys):
        figure.draw(figure.signal([xs[0], xs[-1]], [0, 0], marker="·").lines())
    figure.draw(figure.signal(xs, ys, marker="braille").lines())
    figure.draw(figure.signal(xs, ys, marker="●"))
    figure.ruler("x").ticks(xs, [f"{x:g}" for x in xs])
    figure.label("coefficient")
    return str(figure.build().string(colorless=True))


def _on_screen(text: str) -> str:
    return on_screen(text.strip())
