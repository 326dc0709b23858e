"""What is written when a run ends: tables, figures, the page, and the cards of the artifacts that it kept.

What stands in them is the business of each study's own files; a new study is a line in `REPORTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from subvene.runner.artifacts.artifact import CARD, is_artifact
from subvene.runner.artifacts.card import with_measured
from subvene.runner.experiments.results import Results
from subvene.runner.files.storage import write_text
from subvene.runner.reports import (
    interchange,
    localization,
    localization_tables,
    look,
    page,
    persona,
    persona_tables,
    tables,
    tracing,
)
from subvene.runner.reports.card import own_numbers
from subvene.runner.reports.documents import in_markdown
from subvene.runner.reports.markup import Figure, Html
from subvene.specs.regular_file import read_text

PAGE, TABLES, FIGURES = "report.html", "tables", "figures"


@dataclass(frozen=True)
class Report:
    """How a study's results are shown.

    Attributes:
        tables: the files in `tables/` by name.
        page: the whole of `report.html`, with the figures that stand in it.
        card: the tables for the card of an artifact that lies there in the run, Markdown; empty without any.
    """

    tables: Callable[[Results], dict[str, str]]
    page: Callable[[Results], Html]
    card: Callable[[Results, str | None], str]


REPORTS: dict[str, Report] = {
    "comparison": Report(
        tables.comparison_files, page.render, lambda results, place: in_markdown(tables.document(results))
    ),
    "localization": Report(
        localization_tables.localization_files,
        localization.render,
        lambda results, place: in_markdown(localization_tables.document(results)),
    ),
    "persona": Report(persona_tables.persona_files, persona.render, persona_tables.card),
    "tracing": Report(
        tracing.tracing_files, tracing.render, lambda results, place: in_markdown(tracing.document(results))
    ),
    "interchange": Report(
        interchange.interchange_files,
        interchange.render,
        lambda results, place: in_markdown(interchange.document(results)),
    ),
    "look": Report(look.look_files, look.render, lambda results, place: in_markdown(look.document(results))),
}
"""By the kind of results."""


def publish(output: Path, results: Results) -> None:
    """Write `tables/`, `figures/`, `report.html`, and what was measured into the card of every artifact.

    Args:
        output: the run's folder.
        results: of the run.

    Raises:
        StorageError: the disk does not take it.
    """
    report = REPORTS[results.kind]
    (output / TABLES).mkdir(parents=True, exist_ok=True)
    for name, text in report.tables(results).items():
        write_text(output / TABLES / name, text)
    page = report.page(results)
    write_figures(output / FIGURES, page.figures)
    write_text(output / PAGE, page)
    for artifact in (output / "artifact", *sorted(output.glob("artifacts/*"))):
        card = artifact / CARD
        if not is_artifact(artifact) or not card.is_file():
            continue
        if table := card_table(results, artifact.relative_to(output).as_posix()):
            write_text(card, with_measured(read_text(card), table))


def write_figures(folder: Path, figures: Sequence[Figure]) -> None:
    """Write each figure as `NAME.svg`; without figures there is no folder.

    Args:
        folder: theirs alone.
        figures: of the page.
    """
    if not figures:
        return
    # matplotlib is slow to import, and only here needed.
    from subvene.runner.reports.svg import svg

    folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        write_text(folder / f"{figure.name}.svg", svg(figure.drawn, figure.about))


def card_table(results: Results, place: str | None) -> str:
    """What the card of an artifact says was measured: its own numbers, and the table of all.

    Args:
        results: of the run.
        place: where the artifact lies in the run (`artifacts/edit_probed`); None: elsewhere.
    """
    return own_numbers(results, place) + REPORTS[results.kind].card(results, place)
