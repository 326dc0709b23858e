"""What a judge of traits gives models that say one thing whatever is asked.

Next to a study's trait scores stand those of three constant sentences, and of the untouched model's answers
to other questions, judged by the same judge on the same questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from pydantic import Field, JsonValue

from subvene.runner.data.traits import Trait
from subvene.runner.experiments.results import Item, Metric, QuestionText, Record, Results, metric_of
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import Ledger, digest
from subvene.runner.judges import Answer, Judge, scored
from subvene.runner.judges.nulls import CONSTANTS, label_of
from subvene.runner.measures.responses import Scores, scores_of

SECTION = "trait_nulls"
OTHERS = "own answers to other questions"


class NullScores(Record):
    """What a judge gives one of the nulls, over its answers.

    Attributes:
        score: of the trait, 0 to 100; None if there is none.
        coherence: 0 to 100; None if there is none.
        n: answers.
        refused: how many of them the judge takes for refusals.
    """

    score: Metric | None = None
    coherence: Metric | None = None
    n: int
    refused: int = 0


class TraitNulls(Record):
    """By trait and label of the null what the judge gives it."""

    traits: dict[str, dict[str, NullScores]] = Field(default={})


class _Found(TypedDict):
    nulls: dict[str, Scores]
    missing: int


def trait_nulls_in(results: Results) -> TraitNulls:
    """Those of a run; empty where no trait was scored.

    Raises:
        ResultsError: the section is not of its type.
    """
    return results.section(SECTION, TraitNulls) or TraitNulls()


def trait_nulls_section(
    answers: Sequence[tuple[Trait, Sequence[Item]]],
    questions: Mapping[str, QuestionText],
    judge: Judge,
    ledger: Ledger,
    base: Mapping[str, Json],
) -> dict[str, JsonValue]:
    """The section under its name; nothing where no trait was scored.

    Args:
        answers: of each trait, what the untouched model answers.
        questions: by key, those that were asked.
        judge: of the study.
        ledger: the verdicts on a trait's nulls are a unit of work.
        base: what every unit depends on.
    """
    found = {}
    for trait, items in answers:
        said = dict(_said(items, questions))
        if said:
            found[trait.name] = _scored(trait, said, judge, ledger, base)
    return {SECTION: TraitNulls(traits=found).model_dump(mode="json")} if found else {}


def _said(items: Sequence[Item], questions: Mapping[str, QuestionText]) -> Iterator[tuple[str, list[Answer]]]:
    """By label what each null says to what."""
    asked = sorted({item.key for item in items})
    texts = [questions[key].question for key in asked]
    for constant in CONSTANTS if asked else ():
        yield label_of(constant), [Answer(text, constant) for text in texts]
    if len(asked) > 1:
        other = dict(zip(asked, texts[len(asked) // 2 :] + texts[: len(asked) // 2], strict=True))
        yield OTHERS, [Answer(other[item.key], item.text) for item in items if item.text]


def _scored(
    trait: Trait,
    said: Mapping[str, Sequence[Answer]],
    judge: Judge,
    ledger: Ledger,
    base: Mapping[str, Json],
) -> dict[str, NullScores]:
    identity: dict[str, Json] = {
        **base,
        "unit": "scores of nulls",
        "trait": trait.sha256,
        "judge": judge.identity(scored([trait])),
        "exchanges": digest({label: [[a.question, a.answer] for a in by] for label, by in said.items()}),
    }

    def work() -> _Found:
        nulls = {label: scores_of(answers, trait, judge) for label, answers in said.items()}
        return {"nulls": nulls, "missing": sum(one["missing"] for one in nulls.values())}

    return {label: _row(one) for label, one in ledger.do(identity, work)["nulls"].items()}


def _row(found: Scores) -> NullScores:
    scores = found["scores"]
    return NullScores(
        score=metric_of(one["score"] for one in scores),
        coherence=metric_of(one["coherence"] for one in scores),
        n=len(scores),
        refused=sum(one["refused"] for one in scores),
    )
