"""What stands beside trait scores: what the judge gives models that say one thing whatever is asked."""

from __future__ import annotations

from subvene.runner.experiments.results import Metric, Results
from subvene.runner.experiments.trait_nulls import TraitNulls, trait_nulls_in
from subvene.runner.files.csv_file import csv_text
from subvene.runner.reports.blocks import Column, Document, Items, Table
from subvene.runner.reports.markup import Html, element, items, join, shown

_COLUMNS = (
    Column("trait"),
    Column("null"),
    Column("score", ".1f"),
    Column("coherence", ".1f", "↑"),
    Column("refused"),
    Column("n"),
)
SAID = (
    "null: a model that says one thing whatever is asked, or the first condition's answers to other "
    "questions, judged by the same judge on the same questions: scores that say nothing of the trait"
)


def trait_nulls_files(results: Results) -> dict[str, str]:
    """The table for other tools by file name; nothing where no trait was scored."""
    found = trait_nulls_in(results)
    lines = [
        {
            "trait": trait,
            "null": label,
            "score": _mean(row.score),
            "coherence": _mean(row.coherence),
            "refused": row.refused,
            "n": row.n,
        }
        for trait, by_label in found.traits.items()
        for label, row in by_label.items()
    ]
    return {"trait_nulls.csv": csv_text(lines)} if lines else {}


def trait_nulls_document(results: Results) -> Document:
    """The table and how to read it; empty where no trait was scored."""
    found = trait_nulls_in(results)
    if not found.traits:
        return []
    return [_table(found), Items((*(f"WARNING: {said}" for said in beaten(results)), SAID))]


def trait_nulls(results: Results) -> Html | None:
    """The section of the page."""
    found = trait_nulls_in(results)
    if not found.traits:
        return None
    warnings = [
        element("p", element("strong", "Warning: "), said, class_="warning") for said in beaten(results)
    ]
    return join([*warnings, shown(_table(found)), items(SAID)])


def beaten(results: Results) -> list[str]:
    """The traits whose highest score, over all conditions, a model reaches that says one thing."""
    said = []
    for trait, by_label in trait_nulls_in(results).traits.items():
        scores = {label: row.score.mean for label, row in by_label.items() if row.score is not None}
        reached = _reached(results, trait)
        if scores and reached and max(scores.values()) >= max(reached.values()):
            null, condition = max(scores, key=scores.__getitem__), max(reached, key=reached.__getitem__)
            said.append(
                f"{trait}: no condition scores more than {reached[condition]:.1f} ({condition}), and {null} "
                f"{scores[null]:.1f}; by this judge a high score does not show the trait"
            )
    return said


def _reached(results: Results, trait: str) -> dict[str, float]:
    """By condition the mean score of a trait, over seeds and folds."""
    found: dict[str, list[float]] = {}
    for condition in results.conditions:
        name = "score" if condition.group == trait else f"{trait}_score"
        if (mean := condition.value(name)) is not None:
            found.setdefault(condition.label, []).append(mean)
    return {label: sum(values) / len(values) for label, values in found.items()}


def _table(found: TraitNulls) -> Table:
    """A row for each trait and null."""
    return Table.of(
        _COLUMNS,
        [
            [trait, label, row.score, row.coherence, row.refused, row.n]
            for trait, by_label in found.traits.items()
            for label, row in by_label.items()
        ],
    )


def _mean(metric: Metric | None) -> float | None:
    return None if metric is None else metric.mean
