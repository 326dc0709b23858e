"""How far a judge agrees with people, in words and tables of the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from subvene.runner.judges.base import Identity, Usage
    from subvene.runner.judges.training.agreement import Agreement
    from subvene.runner.judges.training.checking import Checked


def print_check(
    console: Console,
    checked: Checked,
    described: Identity,
    labels: Path,
    rows: int,
    usage: Usage,
) -> None:
    from subvene.runner.cli._tables import print_line

    found = checked.agreement
    print_line(console, "judge", _judge_in_words(described, checked.aspect))
    print_line(console, "labels", f"{labels}: {rows} rows about {checked.aspect}")
    counted = f"{found.n} rows of {checked.questions} questions"
    if checked.held_out:
        counted += (
            f", all held out; {checked.fitted_on} rows of questions that the judge was fitted on left out"
        )
    elif described["kind"] != "reference":
        counted += "; whether the judge was fitted on any of these questions is not known"
    print_line(console, "counted", counted)
    if found.unjudged:
        reasons = "; ".join(f"{count} × {reason}" for reason, count in checked.reasons.items())
        print_line(console, "unjudged", f"{found.unjudged} rows, in none of the numbers below: {reasons}")
    if checked.missing:
        said = f"{checked.missing} of them for want of a usable reply: run again to ask for these"
        print_line(console, "missing", f"{said}; until then nothing of this is stated elsewhere")
    if checked.without_references and checked.aspect == "truth":
        print_line(
            console, "no refs", f"{checked.without_references} rows without reference answers (--data)"
        )
    console.print()
    console.print(_overall(found), "", _calibration(found), sep="\n")
    if checked.by_category:
        console.print(_categories(checked.by_category))
    if usage:
        print_line(console, "usage", ", ".join(f"{name} {value}" for name, value in usage.items()))


def print_by_hand(console: Console, measured: Mapping[str, Agreement], labels: Path) -> None:
    from subvene.runner.cli._tables import print_line

    for name, found in measured.items():
        unjudged = f"; {found.unjudged} without a verdict of the judge" if found.unjudged else ""
        print_line(console, name, f"{labels}: {found.n} labels by hand{unjudged}")
        console.print(_overall(found))


def _judge_in_words(described: Identity, aspect: str) -> str:
    model = described.get(f"{aspect}_model")
    named = model["name"] if isinstance(model, Mapping) else model
    parts = (described["kind"], named, described.get("base_url"), described.get("metric"))
    return ", ".join(str(part) for part in parts if part)


def _overall(found: Agreement) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("measure", header_style="cyan")
    table.add_column("value", justify="right", header_style="cyan")
    named = {
        "accuracy": found.accuracy,
        "majority label": found.majority,
        "AUC": found.auc,
        "Brier score": found.brier,
        "calibration error": found.ece,
        "people say yes": found.yes_rate,
        "judge says yes": found.judged_yes_rate,
        "accuracy where people say yes": found.accuracy_on_yes,
        "accuracy where people say no": found.accuracy_on_no,
    }
    for name, value in named.items():
        table.add_row(name, "–" if value is None else f"{value:.3f}")
    return table


def _calibration(found: Agreement) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="calibration", title_justify="left", title_style="bold")
    for name in ("probability", "rows", "mean", "people say yes"):
        table.add_column(name, justify="right", header_style="cyan")
    for one in found.bins:
        of_bin = (f"{one.low:.1f}–{one.high:.1f}", f"{one.n}")
        table.add_row(*of_bin, f"{one.mean_probability:.3f}", f"{one.yes_rate:.3f}")
    return table


def _categories(by_category: Mapping[str, Agreement]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="by category", title_justify="left", title_style="bold")
    table.add_column("category", header_style="cyan")
    for name in ("rows", "accuracy", "majority"):
        table.add_column(name, justify="right", header_style="cyan")
    for name, one in sorted(by_category.items(), key=lambda item: -item[1].n):
        shares = ("–" if value is None else f"{value:.3f}" for value in (one.accuracy, one.majority))
        table.add_row(name, str(one.n), *shares)
    return table


def cross_validated(accuracy: Mapping[Any, Any]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="cross-validated by question", title_justify="left")
    table.add_column("labels", header_style="cyan")
    for name in ("rows", "accuracy", "majority", "AUC", "Brier", "ECE"):
        table.add_column(name, justify="right", header_style="cyan")
    for aspect, stated in accuracy.items():
        rows = {
            aspect: stated,
            f"{aspect}, no reference answer": stated["of_which"].get("no_reference_answer"),
            f"{aspect}, judged without references": stated.get("without_references"),
        }
        for name, one in rows.items():
            if one is not None:
                values = (one[key] for key in ("accuracy", "majority", "auc", "brier", "ece"))
                shown = ("–" if value is None else f"{value:.3f}" for value in values)
                table.add_row(name, str(one["n"]), *shown)
    return table
