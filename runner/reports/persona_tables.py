"""Tables of a persona run as files: CSV for other tools, Markdown to read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import cast

from subvene.runner.experiments.persona.section import (
    SECTION,
    Edit,
    PersonaSection,
    SweepPoint,
    TraitRecord,
    artifact_of,
)
from subvene.runner.experiments.results import Choice, Condition, Item, Metric, Results, ResultsError
from subvene.runner.files.csv_file import csv_text
from subvene.runner.reports.blocks import Cell, Column, Document, Items, Table
from subvene.runner.reports.documents import document_files, in_markdown
from subvene.runner.reports.persona_differences import differences_files
from subvene.runner.reports.trait_nulls import trait_nulls_document, trait_nulls_files

Line = dict[str, object]

COST = ("ce", "kl", "accuracy")
"""What an edit costs, as metrics."""
_CONDITION = ("name", "label", "kind", "coefficient", "layers")
_MEASURES: tuple[str, ...] = ("n", "missing", "score", "score_sd", "coherence", "coherence_sd", "refused")
_MEASURES += ("projection", "projection_sd")
_CAP = ("threshold", "changed_share", "expected_share", "warning")
_SWEEP: tuple[str, ...] = ("layer", "coefficient", "n", "missing", "score", "score_sd", "scored", "refused")
_SWEEP += ("coherence", "coherence_sd", "contrast")
_RESPONSE: tuple[str, ...] = ("condition", "layer", "coefficient", "seed", "question", "text")
_RESPONSE += ("score", "coherence", "projection", "tokens")
DROPPED = ("positive_low", "negative_high", "incoherent", "refused", "empty", "no_score", "missing")
"""Why a pair of responses is left out of a vector, in the results' words."""


def persona_files(results: Results) -> dict[str, str]:
    """The tables by file name: CSV files, and the tables of conditions and differences for readers.

    Args:
        results: of a persona run.
    """
    return {
        "conditions.csv": csv_text(
            list(_condition_lines(results)),
            ["trait", "layer", "unit", *_CONDITION, *_MEASURES, *COST, "choices", "texts", *_CAP],
        ),
        "sweep.csv": csv_text(list(_sweep_lines(results)), ["trait", "unit", *_SWEEP, "chosen"]),
        "responses.csv": csv_text(list(_response_lines(results)), ["trait", "of", *_RESPONSE]),
        "geometry.csv": csv_text(
            list(_geometry_lines(results)), ["measure", "trait", "other", "layer", "other_layer", "value"]
        ),
        "extraction.csv": csv_text(
            list(_extraction_lines(results)),
            [
                "trait",
                "pairs",
                "kept",
                *(f"dropped_{reason}" for reason in DROPPED),
                "mean_score_positive",
                "mean_score_negative",
                "warning",
            ],
        ),
        **differences_files(results),
        **trait_nulls_files(results),
    } | document_files("conditions", document(results), results.kind)


def document(results: Results, conditions: Sequence[Condition] | None = None) -> Document:
    """The table of conditions, and the warnings below it.

    Args:
        results: of a persona run.
        conditions: of the table; None: all.
    """
    about = "mean ± standard deviation over responses; CE and KL in nats per token on neutral texts"
    warnings = (f"WARNING: {note}" for note in results.notes)
    shown = results.conditions if conditions is None else conditions
    nulls = trait_nulls_document(results) if conditions is None else []
    return [conditions_table(shown), Items((about, *warnings)), *nulls]


_TRAIT = Column("trait")
_COLUMNS = (
    Column("condition"),
    Column("coefficient", "g"),
    Column("score", ".1f"),
    Column("coherence", ".1f", "↑"),
    Column("projection", ".2f"),
    Column("CE", better="↓"),
    Column("KL", better="↓"),
    Column("accuracy", better="↑"),
    Column("refused"),
    Column("n"),
)


def conditions_table(conditions: Sequence[Condition], *, of_one: bool = False) -> Table:
    """A row for each condition.

    Args:
        conditions: with their numbers.
        of_one: all are of one trait, which then has no column.
    """
    missing = any(condition.counts.get("missing") for condition in conditions)
    rows = []
    for condition in conditions:
        metrics, counts = condition.metrics, condition.counts
        cells: list[Cell] = [] if of_one else [condition.group or ""]
        cells += [condition.label, coefficient_of(condition)]
        cells.append(metrics.get("score") if condition.not_finite is None else "not finite")
        cells += [metrics.get("coherence"), metrics.get("projection")]
        cells += [condition.value(name) for name in COST]
        cells += [counts.get("refused"), counts.get("responses")]
        cells += [counts.get("missing", 0)] if missing else []
        rows.append(cells)
    columns = [*_COLUMNS, *([Column("missing")] if missing else [])]
    return Table.of(columns if of_one else [_TRAIT, *columns], rows)


def card(results: Results, place: str | None) -> str:
    """The table for the card of an artifact: of its own trait only, where it is that of one.

    Args:
        results: of a persona run.
        place: where the artifact lies in the run (`artifacts/optimistic`); None: elsewhere.

    Returns:
        Markdown; empty where there are no conditions.
    """
    own = [name for name in section_of(results).traits if place == artifact_of(name)]
    shown = [condition for condition in results.conditions if not own or condition.group in own]
    return in_markdown(document(results, shown)) if shown else ""


def section_of(results: Results) -> PersonaSection:
    """What only a persona experiment knows.

    Raises:
        ResultsError: these are the results of something else.
    """
    section = results.section(SECTION, PersonaSection)
    if section is None:
        raise ResultsError(f"results: expected `sections.{SECTION}`, as a persona experiment writes it")
    return section


def choices_of(results: Results) -> dict[str, Choice]:
    """The choice on each trait's sweep that found a point, by trait."""
    return {choice.condition: choice for choice in results.choices if choice.chosen is not None}


def coefficient_of(condition: Condition) -> float | None:
    """Of the steering; None where nothing is added."""
    value = condition.point.get("coefficient")
    return float(value) if isinstance(value, int | float) else None


def at(choice: Choice | None) -> tuple[int, float] | None:
    """Layer and coefficient that were chosen; None where none were."""
    if choice is None or choice.chosen is None:
        return None
    return cast("tuple[int, float]", (choice.chosen["layer"], choice.chosen["coefficient"]))


def number(value: float | None, form: str) -> str:
    """A number in words; – if there is none."""
    return "–" if value is None else format(value, form).replace("-", "−")


def spread(metric: Metric | None, form: str) -> str:
    """Mean ± standard deviation, as far as they are known."""
    if metric is None:
        return number(None, form)
    return number(metric.mean, form) + ("" if metric.sd is None else f" ± {number(metric.sd, form)}")


def _parts(name: str, metric: Metric | None) -> Line:
    return {name: metric and metric.mean, f"{name}_sd": metric and metric.sd}


def _condition_lines(results: Results) -> Iterator[Line]:
    traits = section_of(results).traits
    for condition in results.conditions:
        trait, edit = condition.group or "", Edit.of(condition)
        place, metrics = traits[trait].steering, condition.metrics
        line: Line = {
            "trait": trait,
            "layer": place and place.layer,
            "unit": place and place.unit,
            "name": condition.name,
            "label": condition.label,
            "coefficient": coefficient_of(condition),
            "n": condition.counts.get("responses"),
            "choices": metrics["accuracy"].n if "accuracy" in metrics else None,
            "texts": metrics["ce"].n if "ce" in metrics else None,
        }
        line |= {name: condition.counts.get(name) for name in ("missing", "refused")}
        for name in ("score", "coherence", "projection"):
            line |= _parts(name, metrics.get(name))
        line |= {name: condition.value(name) for name in COST}
        line |= edit.model_dump(mode="json")
        for name in ("layers", "threshold"):
            line[name] = None if line[name] is None else json.dumps(line[name])
        yield line


def _sweep_lines(results: Results) -> Iterator[Line]:
    choices = choices_of(results)
    for name, found in section_of(results).traits.items():
        chosen = at(choices.get(name))
        for point in found.sweep.points if found.sweep else ():
            line: Line = {"trait": name, "unit": found.steering and found.steering.unit}
            line |= {
                field: getattr(point, field)
                for field in ("layer", "coefficient", "n", "missing", "refused", "contrast")
            }
            line |= _parts("score", point.score) | _parts("coherence", point.coherence)
            line["scored"] = 0 if point.score is None else point.score.n
            yield line | {"chosen": int((point.layer, point.coefficient) == chosen)}


def _response_lines(results: Results) -> Iterator[Line]:
    for name, found in section_of(results).traits.items():
        for condition in results.conditions:
            if condition.group == name:
                where: Line = {"trait": name, "of": "conditions", "condition": condition.label}
                yield from (where | _response(results, item) for item in condition.items)
        for point in found.sweep.points if found.sweep else ():
            where = {"trait": name, "of": "sweep", "layer": point.layer, "coefficient": point.coefficient}
            yield from (where | _response(results, item) for item in point.items)


def _response(results: Results, item: Item) -> Line:
    question = results.questions[item.key].question
    return {"question": question, "text": item.text, "seed": item.seed, "tokens": item.tokens, **item.scores}


def _geometry_lines(results: Results) -> Iterator[Line]:
    section = section_of(results)
    if (found := section.geometry) is not None:
        layers, names = found.layers, found.traits
        for a, row in zip(names, found.cosine_at_layer, strict=True):
            for b, value in zip(names, row, strict=True):
                yield _geometry("cosine_at_layer", a, value, other=b, layer=found.layer)
        for pair, values in found.cosine_by_layer.items():
            a, _, b = pair.partition("|")
            for layer, value in zip(layers, values, strict=True):
                yield _geometry("cosine_by_layer", a, value, other=b, layer=layer)
        for name, matrix in found.across_layers.items():
            for layer, row in zip(layers, matrix, strict=True):
                for other_layer, value in zip(layers, row, strict=True):
                    yield _geometry("across_layers", name, value, layer=layer, other_layer=other_layer)
        for measure, by_trait in (
            ("norm", found.norms),
            ("explained_variance", found.explained_variance),
        ):
            for name, values in by_trait.items():
                for layer, value in zip(layers, values, strict=True):
                    yield _geometry(measure, name, value, layer=layer)
    for name, trait in section.traits.items():
        for vector in trait.vectors:
            yield _geometry("residual_norm", name, vector.residual_norm, layer=vector.layer)


def _geometry(measure: str, trait: str, value: float | None, **where: object) -> Line:
    return {"measure": measure, "trait": trait, "value": value} | where


def _extraction_lines(results: Results) -> Iterator[Line]:
    for name, trait in section_of(results).traits.items():
        found = trait.extraction
        yield {
            "trait": name,
            "pairs": found.pairs,
            "kept": found.kept,
            **{f"dropped_{reason}": found.dropped.get(reason, 0) for reason in DROPPED},
            "mean_score_positive": found.mean_score.positive,
            "mean_score_negative": found.mean_score.negative,
            "warning": found.warning,
        }


def points_of(trait: TraitRecord) -> Sequence[SweepPoint]:
    """The points of a trait's sweep; none where it was not swept."""
    return trait.sweep.points if trait.sweep else ()


def conditions_of(results: Results) -> dict[str, list[Condition]]:
    """The conditions of every trait."""
    return {
        name: [condition for condition in results.conditions if condition.group == name]
        for name in section_of(results).traits
    }
