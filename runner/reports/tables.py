"""Tables as files: Markdown to read, CSV for other tools, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from pydantic import JsonValue

from subvene.runner.experiments.comparison.composition import SECTION, CompositionSection, composition_lines
from subvene.runner.experiments.intervals import intervals_in
from subvene.runner.experiments.results import Condition, Results, missing_verdicts
from subvene.runner.experiments.rows import METRICS, Row, is_lower_better, metrics_used, rows
from subvene.runner.files.csv_file import csv_text
from subvene.runner.measures.missing import missing_in_words
from subvene.runner.reports.blocks import Column, Document, Items, Mean, Table
from subvene.runner.reports.budgets import budgets_csv, budgets_document
from subvene.runner.reports.documents import document_files
from subvene.runner.reports.intervals import intervals_csv, intervals_document
from subvene.runner.reports.item_effects import item_effects_csv, item_effects_document
from subvene.runner.reports.judged import judged_document, judged_files
from subvene.runner.reports.trait_nulls import trait_nulls_document, trait_nulls_files


def comparison_files(results: Results) -> dict[str, str]:
    """The tables of a comparison by file name; those of things that were not done are left out."""
    table = rows(results.conditions)
    files = document_files("results", document(results), results.kind) | {
        "results.csv": results_csv(table),
        "results.json": results_json(table),
        "cells.csv": csv_text(_cell_lines(results.conditions)),
    }
    if composed := results.section(SECTION, CompositionSection):
        files["composition.csv"] = csv_text(composition_lines(composed))
    if (bounds := intervals_csv(results)) is not None:
        files |= {"intervals.csv": bounds}
        files |= document_files("intervals", intervals_document(results), results.kind)
    if (searched := budgets_csv(results)) is not None:
        files["budgets.csv"] = searched
        files |= document_files("budgets", budgets_document(results), results.kind)
    if (moved := item_effects_csv(results)) is not None:
        files["item_effects.csv"] = moved
        files |= document_files("item_effects", item_effects_document(results), results.kind)
    files |= judged_files(results) | trait_nulls_files(results)
    if answers := list(_answer_lines(results)):
        files["answers.csv"] = csv_text(answers)
    return files


def document(results: Results) -> Document:
    """The table with what must be known to read it: spread, judge, chosen points, warnings."""
    return [
        results_table(results),
        Items(tuple(notes(results))),
        *judged_document(results),
        *trait_nulls_document(results),
    ]


def results_table(results: Results) -> Table:
    """A row for each condition and point."""
    table = bounded(results)
    used = metrics_used(table)
    owed = any(row.missing for row in table)
    return Table.of(
        ["condition", *map(metric_column, used), *(["verdicts missing"] if owed else []), "n"],
        [
            (
                row.label,
                *(
                    Mean(row.metrics.get(metric), row.n) if (words := row.without_numbers) is None else words
                    for metric in used
                ),
                *([row.missing] if owed else []),
                row.n,
            )
            for row in table
        ],
    )


def bounded(results: Results) -> list[Row]:
    """The rows of the table, each number with its interval over questions where the results have one."""
    found = intervals_in(results).rows
    return [
        replace(
            row,
            metrics={
                name: metric.model_copy(update={"low": own.low, "high": own.high})
                if (own := found.get(row.label, {}).get(name)) is not None
                else metric
                for name, metric in row.metrics.items()
            },
        )
        for row in rows(results.conditions)
    ]


def spread_in_words(results: Results) -> str:
    """What stands beside the means, and what n is."""
    found = intervals_in(results)
    cells = "n (seed, fold) cells; a fold's weight is its number of questions"
    if not found.rows:
        return f"mean ± standard deviation over {cells}"
    return f"mean over {cells}; in brackets the {found.level:.0%} interval over questions, texts and pairs"


def metric_column(metric: str) -> Column:
    """The column of a metric, by its name in tables."""
    return Column(METRICS[metric], better="↓" if is_lower_better(metric) else "↑")


def notes(results: Results) -> list[str]:
    """What must stand beside the table."""
    table = rows(results.conditions)
    used = metrics_used(table)
    said = [spread_in_words(results)]
    if missing := missing_verdicts(results.conditions):
        said.insert(0, f"WARNING: {missing_in_words(missing)}")
    if "kl" in used:
        said.append(
            "CE and KL(original ‖ edited) in nats per token, perplexity is exp(CE); KL is against the "
            "untouched model always"
        )
    if "true_info" in used:
        said.append(
            "True×Info is the product of the two means, as published; True∧Info the share of answers "
            "that are both"
        )
    said += [judge_in_words(judge.about) for judge in results.judges]
    seen = sum(cell.counts.get("questions_seen_in_fit", 0) for cell in results.conditions)
    if seen:
        said.append(
            f"WARNING: {seen} answers are to questions that the fit saw; give the experiment `folds:` for a "
            "test on others"
        )
    said += [f"{row.label}: not finite: {row.not_finite}" for row in table if row.not_finite is not None]
    said += [f"{row.label}: {row.out_of_reach}" for row in table if row.out_of_reach is not None]
    for choice in results.choices:
        where = f"{choice.condition}, seed {choice.seed}, fold {choice.fold}"
        said += [
            f"{where}: {_by_path(tried.point)} is not finite on the validation questions and was not chosen "
            "from"
            for tried in choice.tried
            if tried.not_finite is not None
        ]
    for choice in results.choices:
        if choice.chosen is not None:
            where = f"{choice.condition}, seed {choice.seed}, fold {choice.fold}"
            said.append(f"chosen on validation questions for {where}: {_by_path(choice.chosen)}")
    return said


def _by_path(point: Mapping[str, JsonValue]) -> str:
    return ", ".join(f"{path} = {value}" for path, value in point.items())


def judge_in_words(judge: Mapping[str, Any]) -> str:
    """The judge and its stated agreement: with human labels, or with a trait's written-out contrasts."""
    if "agreement" in judge:
        told = [
            f"{trait} {stated['accuracy']:.3f} of {stated['n']} answers"
            for trait, stated in judge["agreement"].items()
            if stated and stated.get("accuracy") is not None
        ]
        apart = ", ".join(told) if told else "not measured"
        return (
            f"judge {judge['kind']}: on the right side of 50 for the trait's written-out contrasts: {apart}"
        )
    parts = []
    for aspect, stated in (judge.get("accuracy") or {}).items():
        if not stated:
            parts.append(f"{aspect} not measured")
            continue
        part = f"{aspect} {stated['accuracy']:.3f}"
        if stated.get("majority") is not None:
            part += f" (majority {stated['majority']:.3f})"
        parts.append(part)
    agreement = ", ".join(parts) if parts else "not measured; see `subvene judge check`"
    return f"judge {judge['kind']}: accuracy on held-out human labels: {agreement}"


def results_csv(table: Sequence[Row]) -> str:
    """The rows of the table as CSV: mean, sd and n of every metric."""
    return csv_text(
        [
            {"condition": row.condition, "label": row.label, "point": json.dumps(row.point)}
            | {
                f"{name}_{part}": getattr(metric, part)
                for name in metrics_used(table)
                if (metric := row.metrics.get(name)) is not None
                for part in ("mean", "sd", "n")
            }
            | {"verdicts_missing": row.missing}
            | why_no_numbers(row)
            for row in table
        ]
    )


def results_json(table: Sequence[Row]) -> str:
    """The rows of the table as JSON."""
    records = [
        {
            name: value
            for name, value in asdict(row).items()
            if name not in ("metrics", "not_finite", "out_of_reach")
        }
        | {"metrics": {m: metric.model_dump(exclude={"low", "high"}) for m, metric in row.metrics.items()}}
        | why_no_numbers(row)
        for row in table
    ]
    return json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def why_no_numbers(one: Row | Condition) -> dict[str, str]:
    """The column that says why there are no numbers; only there where there are none."""
    named = {"not_finite": one.not_finite, "out_of_reach": one.out_of_reach}
    return {name: why for name, why in named.items() if why is not None}


def _cell_lines(cells: Sequence[Condition]) -> list[dict[str, object]]:
    return [
        {
            **_place(cell),
            **{name: cell.counts.get(name, 0) for name in ("questions", "questions_seen_in_fit")},
            "point": json.dumps(cell.point),
            **{name: metric.mean for name, metric in cell.metrics.items()},
            **cell.counts,
            **why_no_numbers(cell),
        }
        for cell in cells
    ]


def _answer_lines(results: Results) -> Iterable[dict[str, object]]:
    for cell in results.conditions:
        for item in cell.items:
            if item.text is not None:
                question = results.questions[item.key].question
                missing = {f"{name}_missing": reason for name, reason in item.missing.items()}
                said = {"key": item.key, "question": question, "answer": item.text}
                yield {**_place(cell), **said, **item.scores, **missing}


def _place(cell: Condition) -> dict[str, object]:
    return {"condition": cell.name, "label": cell.label, "seed": cell.seed, "fold": cell.fold}
