"""TruthfulQA of arms: multiple choice, generated answers, and what a judge says of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, TypedDict

from pydantic import JsonValue

from subvene.runner.data.truthfulqa.prompts import Prompts, load_prompts
from subvene.runner.data.truthfulqa.questions import Question, about_data, data_sha256, load_questions
from subvene.runner.data.truthfulqa.splits import is_of_split, limited
from subvene.runner.engines.engine import Engine
from subvene.runner.experiments.comparison.arms import Arm
from subvene.runner.experiments.comparison.measures.base import (
    ConditionMeasure,
    Measured,
    Place,
    Progress,
    Session,
    WithReceipts,
    done,
    done_of,
    plain,
)
from subvene.runner.experiments.comparison.measures.choices_given import ChoicesGiven, choices_given
from subvene.runner.experiments.comparison.side_by_side import SideBySide
from subvene.runner.experiments.judged_shares import SECOND, judged_section
from subvene.runner.experiments.results import Condition, JudgeRecord, Metric, QuestionText, judge_record
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import Ledger, digest
from subvene.runner.judges import BOTH, INFO, TRUTH, Answer, Identity, Judge, Judgement, Quality, make_judge
from subvene.runner.judges.base import Usage
from subvene.runner.measures.truthfulqa_answers import answer_questions
from subvene.runner.measures.truthfulqa_scores import score_choices, score_side_by_side
from subvene.specs import TruthfulQASpec

_SCORES: tuple[Literal["mc1", "mc2", "mc3"], ...] = ("mc1", "mc2", "mc3")
_QUALITIES: dict[str, Quality[Judgement]] = {"true": TRUTH, "info": INFO}


class _Answers(WithReceipts):
    answers: dict[str, str]


class _Verdict(TypedDict):
    p: float | None
    verdict: bool | None
    reason: str | None
    missing: bool


class _Judgements(TypedDict):
    judgements: dict[str, dict[str, _Verdict]]
    usage: Usage
    missing: int


class TruthfulQAMeasure(ConditionMeasure[Question]):
    """TruthfulQA of arms: multiple choice, generated answers, and what a judge says of these.

    Everything that can be wrong with the files and the judge is found when it is made, before a model is.

    Args:
        spec: the evaluation.
        folder: where relative files are looked for.
    """

    def __init__(self, spec: TruthfulQASpec, folder: Path) -> None:
        self.spec = spec
        self.questions = load_questions(spec.data, folder)
        self.prompts = load_prompts(spec.preset, spec.primer, spec.instruction, folder)
        self.prompts_sha256 = digest(asdict(self.prompts))
        declared = spec.judge if isinstance(spec.judge, tuple) else (spec.judge,)
        self.judges: tuple[Judge, ...] = ()
        if "generation" in spec.measure:
            self.judges = tuple(make_judge(one, folder) for one in declared)
            for judge in self.judges:
                judge.check(BOTH)

    @property
    def judge(self) -> Judge | None:
        """Whose word counts; None where nothing is generated."""
        return self.judges[0] if self.judges else None

    def steps(self, *, only: str | None = None) -> int:
        """Units of work for one arm."""
        units = {"multiple_choice": 1, "generation": 1 + len(self._asked(only))}
        return sum(units[measure] for measure in self._measures(only))

    def measure(
        self,
        arm: Arm,
        questions: Sequence[Question],
        ledger: Ledger,
        progress: Progress,
        *,
        only: str | None = None,
        engine: Engine | None = None,
    ) -> Measured:
        """Measure one arm on some of the questions.

        Args:
            arm: what is measured.
            questions: on which questions.
            ledger: where units are recorded.
            progress: told of every unit.
            only: measure only what this metric needs; None: all that the spec asks for.
            engine: generates and scores; None: transformers in this process.
        """
        measured = Measured()
        for measure in self._measures(only):
            if measured.not_finite is not None:
                break
            if measure == "multiple_choice":
                self._multiple_choice(arm, questions, ledger, progress, measured, engine)
            else:
                self._generation(arm, questions, ledger, progress, measured, self._asked(only), engine)
        return measured

    def choose_together(
        self,
        arms: Sequence[Arm],
        questions: Sequence[Question],
        ledger: Ledger,
        opened: Callable[[Sequence[Arm]], SideBySide],
    ) -> list[int]:
        """Do the units of multiple choice of several arms in one piece, for `measure` to find.

        Args:
            arms: without a system prompt.
            questions: on which questions.
            ledger: where units are recorded.
            opened: puts some of the arms side by side.

        Returns:
            The indices of the arms that were scored now.

        Raises:
            NotSteeredError: an intervention acted on no question.
            NotFiniteError: a score of one of the arms is not finite; nothing is recorded.
        """

        def work(missing: list[int]) -> list[ChoicesGiven]:
            together = opened([arms[i] for i in missing])
            m, size = together.model, self.spec.batch_size
            found = score_side_by_side(m, self.prompts, questions, together.strengths, batch_size=size)
            return [choices_given(one, own) for one, own in zip(found, together.names, strict=True)]

        identities = [self._choices_identity(arm, questions) for arm in arms]
        return ledger.do_together(identities, work)

    def _choices_identity(self, arm: Arm, questions: Sequence[Question]) -> dict[str, Json]:
        return arm.identity | {
            "unit": "multiple_choice",
            "prompts": self._sha256(self._prompts(arm)),
            "questions": data_sha256(questions),
        }

    def _measures(self, only: str | None) -> Sequence[str]:
        if only is None:
            return self.spec.measure
        return ("multiple_choice",) if only.startswith("mc") else ("generation",)

    def _asked(self, only: str | None) -> Sequence[Judge]:
        """Nothing is chosen by a second opinion."""
        return self.judges if only is None else self.judges[:1]

    def _multiple_choice(
        self,
        arm: Arm,
        questions: Sequence[Question],
        ledger: Ledger,
        progress: Progress,
        measured: Measured,
        engine: Engine | None,
    ) -> None:
        prompts = self._prompts(arm)
        identity = self._choices_identity(arm, questions)

        def work() -> ChoicesGiven:
            with arm.open() as m:
                score = None if engine is None else engine.log_probs
                size = self.spec.batch_size
                return choices_given(score_choices(m, prompts, questions, batch_size=size, score=score))

        result = done_of(arm, "multiple_choice", identity, work, ledger, progress, measured)
        if result is None:
            return
        for metric in _SCORES:
            measured.mean(metric, (score[metric] for score in result["scores"].values()))
        measured.receipts["multiple_choice"] = result["receipts"]
        for key, score in result["scores"].items():
            measured.of(key).scores |= {metric: score[metric] for metric in _SCORES}

    def _generation(
        self,
        arm: Arm,
        questions: Sequence[Question],
        ledger: Ledger,
        progress: Progress,
        measured: Measured,
        judges: Sequence[Judge],
        engine: Engine | None,
    ) -> None:
        prompts = self._prompts(arm)
        identity = arm.identity | {
            "unit": "generation",
            "prompts": self._sha256(prompts),
            "questions": [question.key for question in questions],
            "max_new_tokens": self.spec.max_new_tokens,
        }

        def work() -> _Answers:
            with arm.open() as m:
                answers, receipts = answer_questions(
                    m,
                    prompts,
                    questions,
                    max_new_tokens=self.spec.max_new_tokens,
                    batch_size=self.spec.batch_size,
                    generate=None if engine is None else engine.rollouts,
                )
            by_key = {question.key: answer for question, answer in zip(questions, answers, strict=True)}
            return {"answers": by_key, "receipts": plain(receipts)}

        generated = done_of(arm, "generation", identity, work, ledger, progress, measured)
        if generated is None:
            return
        measured.receipts["generation"] = generated["receipts"]
        for key, answer in generated["answers"].items():
            measured.of(key).text = answer
        measured.mean("empty", (not answer for answer in generated["answers"].values()))
        for judge, ending in zip(judges, ("", SECOND), strict=False):
            judged = self._judgements(judge, questions, generated["answers"], ledger, progress, measured)
            _record(judged, ending, measured)
            if not ending:
                _together(judged, measured)

    def _judgements(
        self,
        judge: Judge,
        questions: Sequence[Question],
        answers: Mapping[str, str],
        ledger: Ledger,
        progress: Progress,
        measured: Measured,
    ) -> dict[str, dict[str, _Verdict]]:
        identity: dict[str, Json] = {
            "unit": "judgement",
            "judge": judge.identity(BOTH),
            "questions": data_sha256(questions),
            "answers": digest(dict(answers)),
        }

        def work() -> _Judgements:
            rows = [Answer(q.question, answers[q.key], q.references, q.incorrect) for q in questions]
            found: dict[str, dict[str, _Verdict]] = {}
            for metric, quality in _QUALITIES.items():
                if judge.tells(quality):
                    judged = judge.judge(rows, quality)
                    found[metric] = {
                        q.key: {
                            "p": j.probability,
                            "verdict": j.verdict,
                            "reason": j.reason,
                            "missing": j.missing,
                        }
                        for q, j in zip(questions, judged, strict=True)
                    }
            missing = sum(j["missing"] for by_key in found.values() for j in by_key.values())
            return {"judgements": found, "usage": judge.usage(), "missing": missing}

        return done("judgement", identity, work, ledger, progress, measured)["judgements"]

    def _prompts(self, arm: Arm) -> Prompts:
        return self.prompts if arm.system is None else self.prompts.under(arm.system)

    def _sha256(self, prompts: Prompts) -> str:
        return self.prompts_sha256 if prompts is self.prompts else digest(asdict(prompts))

    def tested(self, place: Place) -> Sequence[Question]:
        """The fold's questions, without those for choosing."""
        reserved = self._reserved()
        chosen = [
            q for q in self.questions if q.key not in reserved and is_of_split(q, place.fold, place.n_folds)
        ]
        return limited(chosen, self.spec.limit)

    def validation(self, place: Place, held: Sequence[Mapping[str, Question]]) -> Sequence[Question]:
        """Those for choosing that no fit has seen; with folds, never those of the fold that is tested."""
        reserved = self._reserved()
        if held:
            pool = [q for q in held[0].values() if all(q.key in questions for questions in held)]
        elif reserved or place.n_folds > 1:
            pool = [
                q
                for q in self.questions
                if place.n_folds == 1 or not is_of_split(q, place.fold, place.n_folds)
            ]
        else:
            return ()
        return [q for q in pool if not reserved or q.key in reserved]

    def _reserved(self) -> frozenset[str]:
        if self.spec.validation is None:
            return frozenset()
        return frozenset(q.key for q in limited(self.questions, self.spec.validation))

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
        """As `measure`."""
        return self.measure(arm, items, session.ledger, progress, only=only, engine=session.engine)

    def data(self) -> Mapping[str, Json]:
        """Of the questions and of what stands before them."""
        return about_data(self.questions) | {"prompts_sha256": self.prompts_sha256}

    def judge_identities(self) -> tuple[Identity, ...]:
        """As records have them."""
        return tuple(judge.describe(BOTH) for judge in self.judges)

    def judged_by(self) -> tuple[JudgeRecord, ...]:
        """The judges and what they have used."""
        return tuple(judge_record(judge.describe(BOTH), judge.usage()) for judge in self.judges)

    def sections(self, conditions: Sequence[Condition], session: Session) -> dict[str, JsonValue]:
        """What the judged shares are worth."""
        return judged_section(conditions, self.judge, self.questions, session.ledger)

    def questions_asked(self) -> dict[str, QuestionText]:
        """All questions of the data."""
        return {
            q.key: QuestionText(question=q.question, best=q.best, category=q.category) for q in self.questions
        }


def _record(judged: Mapping[str, Mapping[str, _Verdict]], ending: str, measured: Measured) -> None:
    for aspect, by_key in judged.items():
        metric = f"{aspect}{ending}"
        verdicts = [verdict for j in by_key.values() if (verdict := j["verdict"]) is not None]
        measured.mean(metric, verdicts)
        measured.counts[f"{metric}_without_verdict"] = len(by_key) - len(verdicts)
        measured.counts[f"{metric}_missing"] = sum(j["missing"] for j in by_key.values())
        for key, j in by_key.items():
            marks = measured.of(key)
            marks.scores |= {metric: j["verdict"], f"{metric}_p": j["p"]}
            if j["missing"]:
                marks.missing[metric] = j["reason"]


def _together(judged: Mapping[str, Mapping[str, _Verdict]], measured: Measured) -> None:
    true, info = measured.metrics.get("true"), measured.metrics.get("info")
    if true is not None and info is not None:
        # As published, the product of the means; and beside it the share of answers that are both.
        measured.metrics["true_info"] = Metric(mean=true.mean * info.mean, n=min(true.n, info.n))
        both = [
            is_true and is_informative
            for key in judged["true"]
            if (is_true := judged["true"][key]["verdict"]) is not None
            and (is_informative := judged["info"][key]["verdict"]) is not None
        ]
        measured.mean("true_and_info", both)
