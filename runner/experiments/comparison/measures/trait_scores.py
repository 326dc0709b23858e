"""Trait scores of arms: score, coherence and projection of what each condition writes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from pydantic import JsonValue

from subvene.runner.data.traits import Trait, question_key
from subvene.runner.edits.compile import CompileError, load_tensors
from subvene.runner.experiments.comparison.arms import Arm
from subvene.runner.experiments.comparison.measures.base import (
    Measured,
    Place,
    Progress,
    Session,
)
from subvene.runner.experiments.comparison.measures.of_traits import Question, TraitsMeasure
from subvene.runner.experiments.judged import about_judge
from subvene.runner.experiments.projections import Projections, mean_projections
from subvene.runner.experiments.results import (
    Condition,
    Item,
    JudgeRecord,
    QuestionText,
    judge_record,
    metric_of,
    metrics_of,
)
from subvene.runner.experiments.trait_nulls import trait_nulls_section
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import Result, digest
from subvene.runner.intervened.rollouts import rollouts
from subvene.runner.judges import ZERO_TO_HUNDRED, Description, Identity, make_judge, scored
from subvene.runner.measures.responses import Answered, Asked, missing_reasons, respond
from subvene.runner.models.identity import tensors_digest
from subvene.specs import TraitScoresSpec, tensor_name


class TraitScoresMeasure(TraitsMeasure):
    """Responses to each trait's evaluation questions, scored from 0 to 100.

    The seed of a response is made of the cell's seed, the trait, the question and which rollout it is: what
    differs between conditions is what is declared and not the dice.
    """

    def __init__(self, spec: TraitScoresSpec, folder: Path) -> None:
        super().__init__(spec, folder)
        self.spec, self.folder = spec, folder
        self.judge = make_judge(spec.judge, folder, scale=ZERO_TO_HUNDRED)
        self.judge.check(scored(self.traits))
        self._about: Description | None = None

    def steps(self, *, only: str | None = None) -> int:
        """Of each trait, what is written and what is scored; what is projected."""
        return (2 if self.spec.projection is None else 3) * len(self.traits)

    def run(
        self,
        arm: Arm,
        items: Sequence[Question],
        session: Session,
        progress: Progress,
        place: Place,
        *,
        only: str | None = None,
    ) -> Measured:
        """Measure one arm, for each trait that a metric names (all of them if none)."""
        self._introduce(session)
        measured = Measured()
        for trait, questions in self.asked(items, only):
            answered = self._answered(arm, trait, questions, session, progress, place, measured)
            if answered.not_finite:
                measured.not_finite = answered.not_finite[()]
                break
            projections = None if only else self._projections(trait, answered, session, progress, place)
            _record(measured, trait, answered, projections)
        return measured

    def _introduce(self, session: Session) -> None:
        """Give the judge the untouched model, and find out once what it is worth."""
        if self._about is not None:
            return
        self.judge = self.judge.with_model(session.original)
        self._about = about_judge(self.judge, self.traits, session.ledger, session.arms.base)

    def _answered(
        self,
        arm: Arm,
        trait: Trait,
        questions: Sequence[str],
        session: Session,
        progress: Progress,
        place: Place,
        measured: Measured,
    ) -> Answered:
        asked = [
            Asked(question, arm.system, rollout=rollout)
            for question in questions
            for rollout in range(self.spec.sampling.rollouts)
        ]
        name = f"{trait.name}_responses"

        def do(identity: Mapping[str, Json], work: Callable[[], Result]) -> Result:
            whole = {**session.arms.base, **identity}
            was_done = session.ledger.has(whole)
            result = session.ledger.do(whole, work)
            written = identity["unit"] == "condition_responses"
            measured.units[name if written else f"{trait.name}_scores"] = digest(whole)
            progress(f"{trait.name}: {'responses' if written else 'scores'}", was_done=was_done)
            return result

        with contextlib.ExitStack() as stack:
            answered = respond(
                lambda: stack.enter_context(arm.open()),
                asked,
                self.spec.sampling,
                trait,
                self.judge,
                identity=arm.identity | {"unit": "condition_responses"},
                seed=place.seed,
                description=f"{trait.name}: responses",
                do=do,
                points=[()] * len(asked) if arm.swept else None,
                generate=rollouts if session.engine is None else session.engine.rollouts,
            )
        if answered.receipt is not None:
            measured.receipts[name] = [*answered.receipt]
        return answered

    def _projections(
        self, trait: Trait, answered: Answered, session: Session, progress: Progress, place: Place
    ) -> list[float | None] | None:
        asked = self.spec.projection
        if asked is None:
            return None
        name = tensor_name(asked.vector.key, "block_output", asked.layer)
        vector = self._vector(name, session, place)
        texts = [response.span for response in answered.responses]
        unit: dict[str, Json] = {
            "unit": "condition_projection",
            "vector": tensors_digest({name: vector}),
            "layer": asked.layer,
            "texts": digest([[list(text.ids), text.start, text.end] for text in texts]),
        }

        def work() -> Projections:
            told = f"{trait.name}: projections"
            return {
                "values": mean_projections(
                    session.original,
                    texts,
                    vector,
                    asked.layer,
                    description=told,
                    read=None if session.engine is None else session.engine.activations,
                )
            }

        whole = session.base | unit
        was_done = session.ledger.has(whole)
        values = session.ledger.do(whole, work)["values"]
        progress(f"{trait.name}: projections", was_done=was_done)
        return values

    def _vector(self, name: str, session: Session, place: Place) -> torch.Tensor:
        asked = self.spec.projection
        if asked is not None and asked.vector.file is not None:
            tensors, where = load_tensors(self.folder / asked.vector.file), asked.vector.file
        else:
            key = "" if asked is None else asked.vector.key
            fitted = session.fits([key], place.seed, place.fold)
            tensors = {} if fitted is None else session.arms.tensors(fitted)
            where = "`fit:`"
        if name not in tensors:
            raise CompileError(f"evaluate trait_scores: projection: {where} gives no {name}")
        return tensors[name]

    def data(self) -> Mapping[str, Json]:
        """The traits' hashes."""
        return {"traits": {trait.name: trait.sha256 for trait in self.traits}}

    def judge_identities(self) -> tuple[Identity, ...]:
        """What scores depend on."""
        return (self.judge.identity(scored(self.traits)),)

    def judged_by(self) -> tuple[JudgeRecord, ...]:
        """The judge, what it is worth, and what it has used."""
        return () if self._about is None else (judge_record(self._about, self.judge.usage()),)

    def sections(self, conditions: Sequence[Condition], session: Session) -> dict[str, JsonValue]:
        """What the judge gives models that say one thing; their own answers are the first condition's."""
        answers = [
            (
                trait,
                [
                    item
                    for condition in conditions
                    if condition.name == conditions[0].name
                    for item in condition.items
                    if f"{trait.name}_score" in item.scores
                ],
            )
            for trait in self.traits
        ]
        base = session.arms.base
        return trait_nulls_section(answers, self.questions_asked(), self.judge, session.ledger, base)

    def questions_asked(self) -> dict[str, QuestionText]:
        """Every trait's evaluation questions."""
        return {
            question_key(question): QuestionText(question=question, category=trait.name)
            for trait in self.traits
            for question in trait.evaluation
        }


def _record(
    measured: Measured, trait: Trait, answered: Answered, projections: Sequence[float | None] | None
) -> None:
    """Take down the numbers and the responses of one trait."""
    responses = answered.responses
    columns = {"score": [r.score for r in responses], "coherence": [r.coherence for r in responses]}
    if projections is not None:
        columns["projection"] = list(projections)
    measured.metrics |= metrics_of(
        {f"{trait.name}_{part}": metric_of(values) for part, values in columns.items()}
    )
    measured.counts[f"{trait.name}_refused"] = sum(response.refused for response in responses)
    measured.counts[f"{trait.name}_missing"] = missing_reasons(responses).total()
    for i, response in enumerate(responses):
        measured.items.append(
            Item(
                key=question_key(response.asked.question),
                text=response.text,
                seed=response.seed,
                tokens=len(response.tokens),
                scores={f"{trait.name}_{part}": values[i] for part, values in columns.items()},
                missing={f"{trait.name}_{part}": why for part, why in response.missing.items()},
            )
        )
