"""Budgets of a comparison: with which strengths conditions keep to them, and what that took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from subvene.runner.experiments.comparison.budgets import BudgetSearch, budgets_in
from subvene.runner.experiments.comparison.cells import in_words
from subvene.runner.experiments.results import Results
from subvene.runner.files.csv_file import csv_text
from subvene.runner.reports.blocks import Document, Items, Table
from subvene.runner.reports.markup import Html, items, join, shown


def budgets_csv(results: Results) -> str | None:
    """A line for every strength that was tried; None where none was."""
    found = budgets_in(results)
    if not found:
        return None
    return csv_text(
        [
            {"condition": one.condition, "seed": one.seed, "fold": one.fold, "point": in_words(one.point)}
            | {"budget": one.kl, "multiple": tried.multiple, "kl": "" if tried.kl is None else tried.kl}
            | {path: value * tried.multiple for path, value in one.strengths.items()}
            | {"chosen": tried.multiple == one.multiple}
            for one in found
            for tried in one.tried
        ]
    )


def budgets_document(results: Results) -> Document:
    """The table and how to read it; empty where no strength was searched for."""
    found = budgets_in(results)
    return [_table(found), Items(tuple(_said(found)))] if found else []


def budgets(results: Results) -> Html | None:
    """The section of the page."""
    found = budgets_in(results)
    return join([shown(_table(found)), items(*_said(found))]) if found else None


def _table(found: Sequence[BudgetSearch]) -> Table:
    return Table.of(
        ["condition", "seed", "fold", "budget", "KL", "times declared", "strengths", "tried", "KL rises"],
        [
            (
                " ".join(filter(None, (one.condition, in_words(one.point)))),
                one.seed,
                one.fold,
                f"{one.kl:g}",
                "not met" if one.reached is None else f"{one.reached:.4f}",
                "" if one.multiple is None else f"{one.multiple:.4g}",
                "" if one.chosen is None else _strengths(one),
                len(one.tried),
                "yes" if one.rises else "no",
            )
            for one in found
        ],
    )


def _strengths(one: BudgetSearch) -> str:
    return in_words({path: value for path, value in (one.chosen or {}).items() if path in one.strengths})


def _said(found: Sequence[BudgetSearch]) -> Iterator[str]:
    within = ", ".join(sorted({f"{one.within:.0%}" for one in found}))
    texts = ", ".join(sorted({str(one.texts) for one in found}))
    yield (
        "each condition's strengths are multiplied by the one number that brings KL(untouched ‖ condition) "
        f"to its budget within {within}, on {texts} texts of their own; the KL of the results is on others. "
        "Tried: how many strengths were measured for it"
    )
    for one in found:
        if one.why is not None:
            yield f"WARNING: {one.condition}, seed {one.seed}, fold {one.fold} is not compared: {one.why}"
    if falling := list(dict.fromkeys(one.condition for one in found if not one.rises)):
        yield (
            f"KL does not rise with every larger strength that was tried: {', '.join(falling)}; other "
            "strengths may keep to the budget too, the smallest one found is taken"
        )
