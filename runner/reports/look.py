"""The tables, the card and the page of a look at an edit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import plotly.graph_objects as go

from subvene.runner.edits.receipt import ReceiptRecord
from subvene.runner.experiments.look.section import (
    Evaluation,
    coefficient_of,
    conditions_of,
    item_of,
    look_of,
    standard_error,
)
from subvene.runner.experiments.results import Condition, Results
from subvene.runner.files.csv_file import csv_text
from subvene.runner.reports.blocks import Cell, Column, Document, Items, Table
from subvene.runner.reports.curves import COLORS, bars, figure
from subvene.runner.reports.documents import document_files
from subvene.runner.reports.examples import EXAMPLES
from subvene.runner.reports.markup import (
    Html,
    downloads,
    element,
    facts,
    folded,
    items,
    join,
    plot,
    shown,
    table,
)
from subvene.runner.reports.page import count, page
from subvene.runner.reports.receipts import (
    GATE_COLUMNS,
    GATES,
    RECEIPT_COLUMNS,
    Read,
    beside,
    gate_lines,
    receipt_cells,
)
from subvene.runner.reports.sections import declared, provenance
from subvene.runner.reports.tables import why_no_numbers

_COLUMNS = ("coefficient", "mean difference", "standard error", "positive preferred")
_ABOUT = (
    "Mean over pairs of log p(positive answer) − log p(negative answer), in nats; positive preferred is the "
    "share of pairs whose positive answer is the likelier one. Coefficient 0 is the untouched model."
)


# Tables ---------------------------------------------------------------------------------------------------


def look_files(results: Results) -> dict[str, str]:
    """The tables of a look by file name; those of things that were not asked for are left out."""
    files = {}
    if lines := [line for e in _of(results, "contrast") for line in _contrast_lines(results, e)]:
        files = {"results.csv": csv_text(lines), **document_files("results", document(results), results.kind)}
    if lines := [line for e in _of(results, "contrast") for line in _pair_lines(results, e)]:
        files["pairs.csv"] = csv_text(lines)
    if lines := [line for e in _of(results, "samples") for line in _sample_lines(results, e)]:
        files["samples.csv"] = csv_text(lines)
    if openings := gate_lines(_read(results)):
        heads = ("Evaluation", "Intervention", *GATE_COLUMNS)
        files |= document_files("gates", [Table.of(heads, openings, GATES)], results.kind)
    return files


def document(results: Results) -> Document:
    """A table for each contrast, with what was edited beside it; empty without one."""
    blocks: list[Table | Items] = []
    for evaluation in _of(results, "contrast"):
        edited = (
            f"{count(len(evaluation.keys), 'pair')}, {count(evaluation.tokens_edited or 0, 'token')} edited"
        )
        broken = _not_finite(conditions_of(results, evaluation))
        blocks += [contrast_table(results, evaluation), Items((_ABOUT, edited, *broken))]
    return blocks


def contrast_table(results: Results, evaluation: Evaluation) -> Table:
    """A row for each coefficient, four digits of everything."""
    rows: list[tuple[Cell, ...]] = []
    for condition in conditions_of(results, evaluation):
        metric = condition.metrics.get(evaluation.name)
        rows.append(
            (coefficient_of(condition), "not finite", None, None)
            if metric is None
            else (
                coefficient_of(condition),
                metric.mean,
                standard_error(metric),
                condition.value(evaluation.preferred),
            )
        )
    title = f"{evaluation.name.replace('_', ' ')}: {count(len(evaluation.keys), 'pair')}"
    return Table.of([Column(name, ".4g") for name in _COLUMNS], rows, title)


def _not_finite(conditions: Iterable[Condition]) -> list[str]:
    return [f"{one.label}: not finite: {one.not_finite}" for one in conditions if one.not_finite is not None]


def _of(results: Results, kind: str) -> list[Evaluation]:
    return [evaluation for evaluation in look_of(results).evaluations if evaluation.kind == kind]


def _contrast_lines(results: Results, evaluation: Evaluation) -> Iterable[dict[str, object]]:
    for condition in conditions_of(results, evaluation):
        metric = condition.metrics.get(evaluation.name)
        line = {"evaluation": evaluation.name, "coefficient": coefficient_of(condition)}
        yield (
            line
            | {
                "mean_difference": None if metric is None else metric.mean,
                "standard_error": None if metric is None else standard_error(metric),
                "positive_preferred": condition.value(evaluation.preferred),
                "pairs": None if metric is None else metric.n,
            }
            | why_no_numbers(condition)
        )


def _pair_lines(results: Results, evaluation: Evaluation) -> Iterable[dict[str, object]]:
    for condition in conditions_of(results, evaluation):
        for key in evaluation.keys:
            item = item_of(condition, key)
            if item is not None and evaluation.name in item.scores and key in results.questions:
                question = results.questions[key]
                yield {
                    "evaluation": evaluation.name,
                    "coefficient": coefficient_of(condition),
                    "prompt": question.question,
                    "positive": question.best,
                    "difference": item.scores[evaluation.name],
                }


def _sample_lines(results: Results, evaluation: Evaluation) -> Iterable[dict[str, object]]:
    for key in evaluation.keys:
        for condition in conditions_of(results, evaluation):
            item = item_of(condition, key)
            yield {
                "evaluation": evaluation.name,
                "prompt": results.questions[key].question,
                "coefficient": coefficient_of(condition),
                "response": None if item is None else item.text,
            } | why_no_numbers(condition)


# The page -------------------------------------------------------------------------------------------------


def render(results: Results) -> Html:
    """The page as text, the same for the same results."""
    sections = [(title, content) for title, make in SECTIONS if (content := make(results)) is not None]
    model = (declared(results).get("model") or {}).get("name")
    coefficients = [f"{coefficient_of(condition):g}" for condition in results.conditions]
    parts = [f"coefficients {', '.join(coefficients)}"] if coefficients else []
    for evaluation in look_of(results).evaluations:
        what = "prompt" if evaluation.kind == "samples" else "pair"
        parts.append(f"{evaluation.name.replace('_', ' ')}: {count(len(evaluation.keys), what)}")
    heading = "An edit at several coefficients" if len(coefficients) > 1 else "A look at an edit"
    return page(results, heading, model=model, summary=join([" · ".join(parts)]), sections=sections)


def preference(results: Results) -> Html | None:
    """What the model prefers at each coefficient: the table, and a line where there are several."""
    parts: list[Html] = []
    for evaluation in _of(results, "contrast"):
        conditions = list(conditions_of(results, evaluation))
        parts.append(shown(contrast_table(results, evaluation)))
        broken = _not_finite(conditions)
        parts += [items(*broken)] if broken else []
        drawn = contrast_line(evaluation, conditions)
        if drawn is not None:
            parts.append(plot(drawn, "Mean difference by coefficient; bars are standard errors."))
    return join([element("p", _ABOUT), *parts]) if parts else None


def contrast_line(evaluation: Evaluation, conditions: Sequence[Condition]) -> go.Figure | None:
    """The mean difference over the coefficients; None for fewer than two that have one."""
    points = sorted(
        (coefficient_of(condition), condition.metrics[evaluation.name])
        for condition in conditions
        if evaluation.name in condition.metrics
    )
    if len(points) < 2:
        return None
    errors = [standard_error(metric) for _, metric in points]
    made = figure(x="coefficient", y="log p(positive) − log p(negative), nats", height=360)
    made.add_trace(
        go.Scatter(
            x=[coefficient for coefficient, _ in points],
            y=[metric.mean for _, metric in points],
            error_y=bars(errors),
            mode="lines+markers",
            line={"color": COLORS[0]},
            marker={"size": 9},
            hovertemplate="%{x}: %{y:.3f}<extra></extra>",
        )
    )
    return made


def samples(results: Results) -> Html | None:
    """Prompts with their answers beside each other."""
    asked = [(evaluation, key) for evaluation in _of(results, "samples") for key in evaluation.keys]
    if not asked:
        return None
    about = ["What it writes, by coefficient: all in one batch, the likeliest token at each step."]
    if len(asked) > EXAMPLES:
        about += [
            f" The first {EXAMPLES} of {len(asked)} prompts; all are in ",
            element("a", "samples.csv", href="#downloads"),
            ".",
        ]
    articles = [_answers(results, evaluation, key) for evaluation, key in asked[:EXAMPLES]]
    return join([element("p", *about), *articles])


def _answers(results: Results, evaluation: Evaluation, key: str) -> Html:
    cards = []
    for condition in conditions_of(results, evaluation):
        item = item_of(condition, key)
        text = None if item is None else item.text
        said: str = text if text is not None and text.strip() else element("em", "(empty)")
        if text is None:
            said = element("em", f"(no answer: not finite: {condition.not_finite})")
        cards.append(element("div", element("h4", condition.label), element("blockquote", said)))
    prompt = results.questions[key].question
    return element("article", element("h3", prompt), element("div", *cards, class_="answers"))


def _records(evaluation: Evaluation) -> tuple[ReceiptRecord, ...]:
    return cast("tuple[ReceiptRecord, ...]", evaluation.receipt)


def _read(results: Results) -> list[Read]:
    """Where interventions acted, with their receipts."""
    return [
        ((evaluation.name.replace("_", " "), str(part["name"])), [part])
        for evaluation in look_of(results).evaluations
        for part in _records(evaluation)
    ]


def receipts(results: Results) -> Html | None:
    """What the interventions did."""
    lines = [
        [evaluation.name.replace("_", " "), str(part["name"]), *receipt_cells([part])]
        for evaluation in look_of(results).evaluations
        for part in _records(evaluation)
    ]
    scored = [
        f"{evaluation.name.replace('_', ' ')}: {count(evaluation.tokens_edited, 'token')} edited"
        for evaluation in look_of(results).evaluations
        if evaluation.tokens_edited is not None
    ]
    if not lines and not scored:
        return None
    about = (
        "Tokens edited at each site: of the prompt, its last token (the cursor), the response; all "
        "coefficients together. ‖Δ‖/‖h‖ is how large the edit is beside the activation that it meets."
    )
    parts = [element("p", about)]
    if lines:
        columns = ["Evaluation", *RECEIPT_COLUMNS]
        parts.append(table("What each intervention did", columns, lines, class_="numbers"))
        parts += beside(("Evaluation",), _read(results))
    return join([*parts, *([items(*scored)] if scored else [])])


def artifact(results: Results) -> Html | None:
    """What was fitted and saved, and whether it reloads."""
    section = look_of(results)
    said = "A fresh process that loaded it gave the same logits."
    if section.reload_failure is not None:
        said = f"No fresh process could load it: {section.reload_failure}"
    elif section.reload_difference is None:
        said = "The logits of a fresh process that loaded it could not be compared: they are not finite."
    elif section.reload_difference:
        by = f"{section.reload_difference:.2g}"
        said = f"A fresh process that loaded it gave logits that differ by up to {by}."
    about = ("The edited model's interventions are in the folder ", element("code", "artifact"))
    dtype = [] if section.dtype is None else [element("p", f"The model ran in {section.dtype}.")]
    fits = [folded("What the fit found", facts("Fit", fit.provenance)) for fit in results.fits]
    return join([element("p", *about, f" beside this page. {said}"), *dtype, *fits])


def _downloads(results: Results) -> Html | None:
    files = look_files(results)
    return downloads(files) if files else None


SECTIONS: tuple[tuple[str, Callable[[Results], Html | None]], ...] = (
    ("Preference", preference),
    ("Samples", samples),
    ("Receipts", receipts),
    ("Artifact", artifact),
    ("Provenance", provenance),
    ("Downloads", _downloads),
)
"""The sections in their order, each with its title; those that give None are left out."""
