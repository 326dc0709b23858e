"""The evaluations of a look, each a unit of work, and the results that they give by coefficient."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypedDict

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
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import digest
from subvene.runner.measures.contrast import ContrastRecord, Contrasts, ContrastText, contrast_texts
from subvene.runner.measures.samples import Sample, Samples
from subvene.specs import ContrastSpec, SamplesSpec

CoefficientSpec = SamplesSpec | ContrastSpec


def names_of(declared: Iterable[CoefficientSpec]) -> list[str]:
    """What each evaluation is called: its kind, and a number from the second of a kind on."""
    names: list[str] = []
    for evaluation in declared:
        n = sum(name.partition("_")[0] == evaluation.kind for name in names)
        names.append(evaluation.kind if n == 0 else f"{evaluation.kind}_{n + 1}")
    return names


@dataclass(frozen=True)
class Asked:
    """An evaluation, with the texts that its files hold.

    Attributes:
        declared: in the file.
        texts: of a contrast (prompt, positive, negative); none of samples.
    """

    declared: CoefficientSpec
    texts: tuple[ContrastText, ...] = ()

    @classmethod
    def of(cls, declared: CoefficientSpec, folder: Path) -> Self:
        """Read what an evaluation names.

        Raises:
            SpecError: a file of pairs is not valid.
            SubveneError: its pairs are no texts with prompts.
        """
        if isinstance(declared, SamplesSpec):
            return cls(declared)
        return cls(declared, tuple(contrast_texts(declared, folder)))

    def unit(self) -> dict[str, Json]:
        """What its unit depends on."""
        unasked = {"seeds", "validation"}
        if isinstance(self.declared, SamplesSpec):
            return self.declared.model_dump(mode="json", exclude=unasked, exclude_none=True)
        return self.declared.model_dump(mode="json", exclude=unasked) | {"pairs": self.texts}


def evaluated(
    name: str,
    asked: Asked,
    found: Samples | Contrasts,
    condition: Condition,
    paths: Sequence[str],
) -> Results:
    """What one evaluation says, as results of it alone.

    Args:
        name: of the evaluation.
        asked: the evaluation.
        found: the result of its unit.
        condition: what all of its conditions have in common.
        paths: of the strengths that its coefficients take the place of.
    """
    if found["kind"] == "samples":
        about, questions, measured = _samples(name, asked, found)
    else:
        about, questions, measured = _contrast(name, asked, found)
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


class _Measured(TypedDict, total=False):
    """Fields of the condition of one coefficient."""

    items: tuple[Item, ...]
    metrics: dict[str, Metric]
    not_finite: str | None


_Read = tuple[Evaluation, dict[str, QuestionText], dict[float, _Measured]]


def _samples(name: str, asked: Asked, found: Samples) -> _Read:
    longest = asked.declared.max_new_tokens if isinstance(asked.declared, SamplesSpec) else 0
    keys = dict.fromkeys(_key(record, longest) for record in found["records"])
    questions = {_key(record, longest): _question(record) for record in found["records"]}
    measured: dict[float, _Measured] = {}
    for record in found["records"]:
        fields = measured.setdefault(record["coefficient"], {"items": ()})
        fields["items"] += (Item(key=_key(record, longest), text=record["response"]),)
        if "not_finite" in record:
            fields["not_finite"] = record["not_finite"]
    evaluation = Evaluation(
        kind="samples",
        name=name,
        coefficients=asked.declared.swept,
        keys=tuple(keys),
        receipt=tuple(found["receipt"]),
    )
    return evaluation, questions, measured


def _key(record: Sample, longest: int) -> str:
    """By what a sample is known: its prompt, the columns beside it, and how long it may get."""
    columns = [record["columns"]] if "columns" in record else []
    return digest([record["prompt"], longest, *columns])[:16]


def _question(record: Sample) -> QuestionText:
    columns = "".join(f"\n{name}: {value}" for name, value in record.get("columns", {}).items())
    return QuestionText(question=f"{record['prompt']}{columns}")


def _contrast(name: str, asked: Asked, found: Contrasts) -> _Read:
    texts = {digest(list(text))[:16]: text for text in asked.texts}
    evaluation = Evaluation(
        kind="contrast",
        name=name,
        coefficients=asked.declared.swept,
        keys=tuple(digest(list(text))[:16] for text in asked.texts),
        tokens_edited=found["tokens_edited"],
    )
    measured: dict[float, _Measured] = {}
    for record, row in zip(found["records"], found["pairs"], strict=True):
        measured[record["coefficient"]] = (
            {"not_finite": record.get("not_finite")}
            if row is None
            else {
                "metrics": _metrics(evaluation, record, row),
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


def _metrics(evaluation: Evaluation, record: ContrastRecord, row: Sequence[float]) -> dict[str, Metric]:
    """The numbers of one coefficient, of which `row` has the difference of each pair, in nats."""
    mean, preferred, spread = record["mean_difference"], record["positive_preferred"], None
    if len(row) > 1:
        spread = statistics.stdev(row)
    means = {evaluation.name: mean, evaluation.preferred: preferred}
    metrics = {name: Metric(mean=value, n=len(row)) for name, value in means.items() if value is not None}
    metrics[evaluation.name] = metrics[evaluation.name].model_copy(update={"sd": spread})
    return metrics


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
