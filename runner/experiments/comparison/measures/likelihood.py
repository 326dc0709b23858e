"""Likelihood of arms: log-probability of the untouched model's own answers with a trait and without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from subvene.runner.data.text import prompt_ids, reply_ids
from subvene.runner.data.traits import Trait, question_key
from subvene.runner.experiments.comparison.arms import Arm
from subvene.runner.experiments.comparison.measures.base import (
    Measured,
    Place,
    Progress,
    Session,
    WithReceipts,
    done,
    done_of,
    plain,
)
from subvene.runner.experiments.comparison.measures.of_traits import Question, TraitsMeasure
from subvene.runner.experiments.results import Item, QuestionText, metric_of, metrics_of
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import digest
from subvene.runner.intervened.generate import Score
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.scoring import log_probs
from subvene.runner.measures.refusals import answers
from subvene.specs import LikelihoodSpec, SubveneError


class _Own(TypedDict):
    """What the untouched model answers to each question: with the trait, and without it."""

    positive: list[str]
    negative: list[str]


class _Scores(WithReceipts):
    """Log-probabilities per token, nats."""

    positive: list[float]
    negative: list[float]


class LikelihoodMeasure(TraitsMeasure):
    """How likely an arm finds the untouched model's own answers of either side, behind the question alone."""

    def __init__(self, spec: LikelihoodSpec, folder: Path) -> None:
        super().__init__(spec, folder)
        self.spec = spec

    def steps(self, *, only: str | None = None) -> int:
        """Of each trait, what the untouched model writes and how an arm scores it."""
        return 2 * len(self.traits)

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
        measured = Measured()
        for trait, questions in self.asked(items, only):
            written = self._own(trait, questions, session, progress, measured)
            kept = _answered(trait, written)
            measured.counts[f"{trait.name}_left_out"] = len(questions) - len(kept)
            questions = [questions[i] for i in kept]
            own: _Own = {
                "positive": [written["positive"][i] for i in kept],
                "negative": [written["negative"][i] for i in kept],
            }
            scores = self._scored(arm, trait, questions, own, session, progress, measured)
            if scores is None:
                break
            _record(measured, trait, questions, scores)
        return measured

    def _own(
        self,
        trait: Trait,
        questions: Sequence[str],
        session: Session,
        progress: Progress,
        measured: Measured,
    ) -> _Own:
        systems = trait.system_prompts()[0]
        identity: dict[str, Json] = session.base | {
            "unit": "own_answers",
            "systems": list(systems),
            "questions": list(questions),
            "max_new_tokens": self.spec.max_new_tokens,
        }

        def work() -> _Own:
            positive, negative = (
                answers(
                    session.original,
                    questions,
                    max_new_tokens=self.spec.max_new_tokens,
                    batch_size=self.spec.batch_size,
                    system=system,
                    description=f"{trait.name}: the model's own answers",
                    generate=None if session.engine is None else session.engine.rollouts,
                )[0]
                for system in systems
            )
            return {"positive": positive, "negative": negative}

        return done(f"{trait.name}_own_answers", identity, work, session.ledger, progress, measured)

    def _scored(
        self,
        arm: Arm,
        trait: Trait,
        questions: Sequence[str],
        own: _Own,
        session: Session,
        progress: Progress,
        measured: Measured,
    ) -> _Scores | None:
        identity: dict[str, Json] = arm.identity | {
            "unit": "likelihood",
            "questions": list(questions),
            "answers": digest([own["positive"], own["negative"]]),
        }

        def work() -> _Scores:
            with arm.open() as m:
                score = log_probs if session.engine is None else session.engine.log_probs
                return _scores(m, questions, own, arm.system, self.spec.batch_size, score)

        name = f"{trait.name}_likelihood"
        scores = done_of(arm, name, identity, work, session.ledger, progress, measured)
        if scores is not None:
            measured.receipts[name] = scores["receipts"]
        return scores

    def data(self) -> Mapping[str, Json]:
        """The traits' hashes."""
        return {trait.name: trait.sha256 for trait in self.traits}

    def questions_asked(self) -> dict[str, QuestionText]:
        """The questions of every trait."""
        return {
            question_key(question): QuestionText(question=question)
            for trait in self.traits
            for question in trait.evaluation
        }


def _answered(trait: Trait, own: _Own) -> list[int]:
    """The questions that the untouched model answers with something on both sides.

    Raises:
        SubveneError: there are none.
    """
    both = zip(own["positive"], own["negative"], strict=True)
    kept = [i for i, (positive, negative) in enumerate(both) if positive.strip() and negative.strip()]
    if not kept:
        raise SubveneError(
            f"evaluate likelihood: the untouched model answers no question of {trait.name} with anything on "
            "both sides, so that there is nothing to score; give a larger `max_new_tokens`, or leave it out"
        )
    return kept


def _scores(
    m: IntervenedModel,
    questions: Sequence[str],
    own: _Own,
    system: str | None,
    batch_size: int,
    score: Score,
) -> _Scores:
    """Log-probability per token of both answers to each question.

    Raises:
        TextError: an answer is empty.
    """
    pairs = []
    for side in (own["positive"], own["negative"]):
        for question, answer in zip(questions, side, strict=True):
            pairs.append(reply_ids(m.tokenizer, prompt_ids(m.tokenizer, question, system=system), answer))
    totals, receipts = score(m, pairs, batch_size=batch_size, description="likelihood")
    means = [total / len(ids) for total, (_, ids) in zip(totals.tolist(), pairs, strict=True)]
    n = len(questions)
    return {"positive": means[:n], "negative": means[n:], "receipts": plain(receipts)}


def _record(measured: Measured, trait: Trait, questions: Sequence[str], scores: _Scores) -> None:
    """Take down the numbers of one trait."""
    name, rows = trait.name, []
    for positive, negative in zip(scores["positive"], scores["negative"], strict=True):
        parts = {"likelihood": positive - negative, "logp": positive, "opposed_logp": negative}
        rows.append({f"{name}_{part}": value for part, value in parts.items()})
    measured.metrics |= metrics_of({metric: metric_of([row[metric] for row in rows]) for metric in rows[0]})
    measured.items += [
        Item(key=question_key(question), scores={**row})
        for question, row in zip(questions, rows, strict=True)
    ]
