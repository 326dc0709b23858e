"""What stands beside judged shares: models that say one thing, evasions, and the judge's own mistakes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from subvene.runner.experiments.judged_shares import CorrectedShare, JudgedShares, Shares, judged_shares_in
from subvene.runner.experiments.results import Results
from subvene.runner.experiments.rows import METRICS
from subvene.runner.files.csv_file import csv_text
from subvene.runner.reports.blocks import Cell, Column, Document, Items, Over, Table
from subvene.runner.reports.markup import Html, element, items, join, shown

_SHARES = ("true", "info", "true_and_info")


def judged_files(results: Results) -> dict[str, str]:
    """The table for other tools by file name; nothing where no answer was judged."""
    found = judged_shares_in(results)
    if not found.rows:
        return {}
    return {"judged.csv": csv_text(list(_csv_lines(found)))}


def judged_document(results: Results) -> Document:
    """The table and how to read it; empty where no answer was judged."""
    found = judged_shares_in(results)
    return [judged_table(found), Items(tuple(judged_notes(found)))] if found.rows else []


def judged(results: Results) -> Html | None:
    """The section of the page."""
    found = judged_shares_in(results)
    if not found.rows:
        return None
    warnings = [
        element("p", element("strong", "Warning: "), said, class_="warning") for said in beaten(found)
    ]
    return join([*warnings, shown(judged_table(found)), items(*_said(found))])


def judged_table(found: JudgedShares) -> Table:
    """A row for each condition, then one for each model that says one thing."""
    heads = [Column(METRICS[name], better="↑") for name in _SHARES]
    answering = [Column(f"{METRICS[name]}, not evading", better="↑") for name in _SHARES]
    fixed = [Column(f"{METRICS[name]}, corrected") for name in found.rates]
    rows: list[list[Cell]] = [
        [row.label, *_cells(row.all), row.evasive, *_cells(row.answering)]
        + [_corrected(row.corrected.get(name)) for name in found.rates]
        for row in found.rows
    ]
    empty: list[Cell] = [None] * (1 + len(answering) + len(fixed))
    rows += [[f"null: {label}", *_cells(shares), *empty] for label, shares in found.nulls.items()]
    return Table.of(["condition", *heads, "evasive", *answering, *fixed], rows)


def judged_notes(found: JudgedShares) -> list[str]:
    """What must be known to read it, warnings first."""
    return [*(f"WARNING: {said}" for said in beaten(found)), *_said(found)]


def beaten(found: JudgedShares) -> list[str]:
    """The conditions whose True∧Info a model reaches that says one thing; without both qualities none."""
    nulls = {label: one.true_and_info for label, one in found.nulls.items() if one.true_and_info is not None}
    if not nulls:
        return []
    best = max(nulls, key=lambda label: nulls[label])
    return [
        f"{row.label}: True∧Info {row.all.true_and_info:.3f} is not above the {nulls[best]:.3f} of a model "
        f"that says one thing ({best}); by this judge its answers are worth no more"
        for row in found.rows
        if row.all.true_and_info is not None and row.all.true_and_info <= nulls[best]
    ]


def _said(found: JudgedShares) -> list[str]:
    said = [
        "shares of answers, seeds and folds pooled; null: a model that says one thing whatever is asked, "
        "judged by the same judge on the same questions",
        "evasive: found by a rule, no judge is asked; such answers are true and uninformative",
    ]
    if found.rates:
        shrink = ", ".join(
            f"{METRICS[name]} {one.sensitivity + one.specificity - 1:.2f} (sensitivity {one.sensitivity:.3f} "
            f"of {one.n_yes}, specificity {one.specificity:.3f} of {one.n_no} labels)"
            for name, one in found.rates.items()
        )
        said += [
            f"by the judge's mistakes a difference between two rows comes out smaller by the factor {shrink}",
            "corrected: Rogan and Gladen (1978), interval of Lang and Reiczigel (2014), 95 %; holds as far "
            "as the judge errs on these answers as often as on those that people labelled",
        ]
    else:
        said.append("the judge states no sensitivity and specificity: nothing is corrected")
    for name, two in found.agreement.items():
        kappa = "no κ, one of them says the same of all" if two.kappa is None else f"κ = {two.kappa:.2f}"
        said.append(
            f"second opinion on {METRICS[name]}: the two judges say the same of {two.share:.3f} of {two.n} "
            f"answers ({kappa})"
        )
    return said


def _cells(shares: Shares) -> list[Cell]:
    return [getattr(shares, name) for name in _SHARES]


def _corrected(one: CorrectedShare | None) -> Cell:
    return None if one is None else Over(f"{one.share:.3f}", f"[{one.low:.3f}, {one.high:.3f}]")


def _csv_lines(found: JudgedShares) -> Iterator[Mapping[str, object]]:
    for row in found.rows:
        line: dict[str, object] = {"label": row.label, "null": 0, "n": row.all.n, "evasive": row.evasive}
        line |= {name: getattr(row.all, name) for name in _SHARES}
        line |= {f"{name}_not_evading": getattr(row.answering, name) for name in _SHARES}
        line["n_not_evading"] = row.answering.n
        for name in found.rates:
            one = row.corrected.get(name)
            for part in ("share", "low", "high"):
                line[f"{name}_corrected_{part}"] = None if one is None else getattr(one, part)
        yield line
    for label, shares in found.nulls.items():
        line = dict.fromkeys(line, None)
        yield (
            line
            | {"label": label, "null": 1, "n": shares.n}
            | {name: getattr(shares, name) for name in _SHARES}
        )
