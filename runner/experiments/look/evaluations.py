"""The evaluations of a look, each a unit of work, and the results that they give by coefficient."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from subvene.runner.data.text import Messages
from subvene.runner.experiments.look.section import (
    SECTION,
    Evaluation,
    LookSection,
    coefficient_of,
    coefficient_title,
    look_of,
)
from subvene.runner.experiments.results import Condition, Item, Metric, Point, QuestionText, Results
from subvene.runner.files.ledger import digest
from subvene.runner.measures.contrast import contrast_texts
from subvene.specs import ContrastSpec, SamplesSpec

CoefficientSpec = SamplesSpec | ContrastSpec


def names_of(declared: Iterable[CoefficientSpec]) -> list[str]:
    """What each evaluation is called: its kind, and a number from the second of a kind on."""
    names: list[str] = []
    for evaluation in declared:
        n = sum(name.partition("_")[0] == evaluation.kind for name in names)
        names.append(evaluation.kind if n == 0 else f"{evaluation.kind}_{n + 1}")
    return names


def asked_of(declared: CoefficientSpec, folder: Path) -> dict[str, Any]:
    """What an evaluation asks for, with the texts that its files hold: its unit depends on it.

    Raises:
        SpecError: a file of pairs is not valid.
        SubveneError: its pairs are no texts with prompts.
    """
    unasked = {"seeds", "validation"}
    if isinstance(declared, SamplesSpec):
        return declared.model_dump(mode="json", exclude=unasked, exclude_none=True)
    whole = declared.model_dump(mode="json", exclude=unasked)
    return whole | {"pairs": contrast_texts(declared, folder)}


def evaluated(
    name: str,
    declared: CoefficientSpec,
    asked: Mapping[str, Any],
    found: Mapping[str, Any],
    condition: Condition,
    paths: Sequence[str],
) -> Results:
    """What one evaluation says, as results of it alone.

    Args:
        name: of the evaluation.
        declared: in the file.
        asked: as `asked_of` gives it.
        found: the result of its unit.
        condition: what all of its conditions have in common.
        paths: of the strengths that its coefficients take the place of.
    """
    read = _samples if isinstance(declared, SamplesSpec) else _contrast
    about, questions, measured = read(name, asked, found)
    conditions = []
    for coefficient, fields in measured.items():
        point: Point = dict.fromkeys(paths, coefficient)
        title = coefficient_title(coefficient)
        conditions.append(condition.model_copy(update={"label": title, "point": point, **fields}))
    section = LookSection(evaluations=(about,))
    return Results(
        kind="look",
        conditions=tuple(conditions),
        questions=questions,
        sections={SECTION: section.model_dump(mode="json")},
    )


_Read = tuple[Evaluation, dict[str, QuestionText], dict[float, dict[str, Any]]]


def _samples(name: str, asked: Mapping[str, Any], found: Mapping[str, Any]) -> _Read:
    keys = dict.fromkeys(_key(record, asked) for record in found["records"])
    questions = {_key(record, asked): _question(record) for record in found["records"]}
    measured: dict[float, dict[str, Any]] = {}
    for record in found["records"]:
        fields = measured.setdefault(record["coefficient"], {"items": ()})
        fields["items"] += (Item(key=_key(record, asked), text=record["response"]),)
        if "not_finite" in record:
            fields["not_finite"] = record["not_finite"]
    evaluation = Evaluation(
        kind="samples",
        name=name,
        coefficients=asked["coefficients"],
        keys=tuple(keys),
        receipt=found["receipt"],
    )
    return evaluation, questions, measured


def _key(record: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """By what a sample is known: its prompt, the columns beside it, and how long it may get."""
    columns = [record["columns"]] if "columns" in record else []
    return digest([record["prompt"], asked["max_new_tokens"], *columns])[:16]


def _question(record: Mapping[str, Any]) -> QuestionText:
    columns = "".join(f"\n{name}: {value}" for name, value in record.get("columns", {}).items())
    return QuestionText(question=f"{record['prompt']}{columns}")


def _contrast(name: str, asked: Mapping[str, Any], found: Mapping[str, Any]) -> _Read:
    texts = {digest(list(text))[:16]: text for text in asked["pairs"]}
    evaluation = Evaluation(
        kind="contrast",
        name=name,
        coefficients=asked["coefficients"],
        keys=tuple(digest(list(text))[:16] for text in asked["pairs"]),
        tokens_edited=found["tokens_edited"],
    )
    measured: dict[float, dict[str, Any]] = {}
    for record, row in zip(found["records"], found["pairs"], strict=True):
        measured[record["coefficient"]] = (
            {"not_finite": record["not_finite"]}
            if row is None
            else {
                "metrics": contrast_metrics(evaluation, record, row),
                "items": tuple(
                    Item(key=key, scores={name: value})
                    for key, value in zip(evaluation.keys, row, strict=True)
                ),
            }
        )
    questions = {
        key: QuestionText(question=_in_words(prompt), best=positive)
        for key, (prompt, positive, _) in texts.items()
    }
    return evaluation, questions, measured


def contrast_metrics(
    evaluation: Evaluation, record: Mapping[str, Any], row: Sequence[float]
) -> dict[str, Metric]:
    """The numbers of one coefficient.

    Args:
        evaluation: that they are of.
        record: as `run_contrast` gives it.
        row: the difference of each pair, in nats.
    """
    return {
        evaluation.name: Metric(
            mean=record["mean_difference"], sd=statistics.stdev(row) if len(row) > 1 else None, n=len(row)
        ),
        evaluation.preferred: Metric(mean=record["positive_preferred"], n=len(row)),
    }


def together(parts: Iterable[Results]) -> Results:
    """The results of several evaluations in one: a condition for each coefficient, from the lowest up."""
    by_point: dict[float, Condition] = {}
    questions: dict[str, QuestionText] = {}
    evaluations: list[Evaluation] = []
    for part in parts:
        evaluations += look_of(part).evaluations
        questions |= part.questions
        for condition in part.conditions:
            coefficient = coefficient_of(condition)
            known = by_point.get(coefficient)
            by_point[coefficient] = condition if known is None else _joined(known, condition)
    return Results(
        kind="look",
        conditions=tuple(by_point[coefficient] for coefficient in sorted(by_point)),
        questions=questions,
        sections={SECTION: LookSection(evaluations=tuple(evaluations)).model_dump(mode="json")},
    )


def _joined(one: Condition, other: Condition) -> Condition:
    items = {item.key: item for item in one.items}
    for item in other.items:
        known = items.get(item.key)
        items[item.key] = (
            item if known is None else known.model_copy(update={"scores": known.scores | item.scores})
        )
    return one.model_copy(
        update={
            "metrics": one.metrics | other.metrics,
            "units": one.units | other.units,
            "items": tuple(items.values()),
            "not_finite": one.not_finite or other.not_finite,
        }
    )


def _in_words(prompt: str | Messages) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
