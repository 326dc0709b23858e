"""Measures: one arm on some questions or texts, as units of work, and the numbers that come of them."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from subvene.runner.data.texts import read_texts
from subvene.runner.data.truthfulqa.prompts import load_prompts
from subvene.runner.data.truthfulqa.questions import Question, data_sha256, load_questions
from subvene.runner.edits.finite_points import marking
from subvene.runner.edits.receipt import Receipt
from subvene.runner.experiments.comparison.arms import Arm
from subvene.runner.experiments.results import Condition, Item, Metric
from subvene.runner.files.ledger import MISSING, Ledger, digest
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.judges import BOTH, INFO, TRUTH, Answer, Judge, JudgeError, Judgement, Quality, make_judge
from subvene.runner.measures.divergence import Reference, divergence
from subvene.runner.measures.missing import item_parts, missing_in_words
from subvene.runner.measures.truthfulqa_answers import answer_questions
from subvene.runner.measures.truthfulqa_scores import score_choices
from subvene.specs import DivergenceSpec, TruthfulQASpec

_QUALITIES: dict[str, Quality[Judgement]] = {"true": TRUTH, "info": INFO}


@dataclass
class Measured:
    """What one arm gave.

    Attributes:
        metrics: by name; those that have no number are left out.
        counts: by name: verdicts that are missing, or that the judge did not give.
        units: name of a measurement → key of its unit in the ledger.
        receipts: name of a measurement → what the interventions did in it.
        questions: by question key, what was measured of it.
        texts: `ce`, `kl` and `tokens` of each text of a divergence.
        not_finite: why there are no numbers, in words; None where there are.
    """

    metrics: dict[str, Metric] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    receipts: dict[str, Any] = field(default_factory=dict)
    questions: dict[str, dict[str, Any]] = field(default_factory=dict)
    texts: dict[str, list[float]] = field(default_factory=dict)
    not_finite: str | None = None

    def value(self, metric: str) -> float | None:
        """A metric's number; None where it has none."""
        return None if metric not in self.metrics else self.metrics[metric].mean

    def mean(self, metric: str, values: Iterable[float | bool]) -> None:
        """Set a metric to the mean of numbers; nothing where there are none."""
        numbers = [float(value) for value in values]
        mean = statistics.fmean(numbers) if numbers else math.nan
        if math.isfinite(mean):
            self.metrics[metric] = Metric(mean=mean, n=len(numbers))


def merged(name: str, label: str, measured: Sequence[Measured], **fields: Any) -> Condition:
    """What several measures gave of one condition.

    Args:
        name: of the condition.
        label: what the table calls it.
        measured: by each measure.
        **fields: what else is known of the condition.
    """
    whole = Measured()
    for one in measured:
        whole.metrics |= one.metrics
        whole.counts |= one.counts
        whole.units |= one.units
        whole.receipts |= one.receipts
        whole.not_finite = one.not_finite or whole.not_finite
        for key, values in one.questions.items():
            whole.questions.setdefault(key, {}).update(values)
    return Condition(
        name=name,
        label=label,
        metrics=whole.metrics,
        counts=fields.pop("counts", {}) | whole.counts,
        units=whole.units,
        receipts=whole.receipts,
        not_finite=whole.not_finite,
        items=tuple(Item(**item_parts(key, values)) for key, values in whole.questions.items()),
        **fields,
    )


def check_complete(measured: Measured, what: str) -> None:
    """Check that nothing is missing in what a choice is made by: another point might be the best.

    Raises:
        JudgeError: verdicts are missing.
    """
    reasons = Counter(
        str(reason)
        for key, values in measured.questions.items()
        for reason in item_parts(key, values)["missing"].values()
    )
    if reasons:
        raise JudgeError(f"{what}: nothing can be chosen yet: {missing_in_words(reasons)}")


class Progress(Protocol):
    """Told of every unit of work, done now or before."""

    def __call__(self, what: str, *, was_done: bool) -> None:
        """Say which unit it was."""


class TruthfulQAMeasure:
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
        self.judge: Judge | None = None
        if "generation" in spec.measure:
            self.judge = make_judge(spec.judge, folder)
            self.judge.check(BOTH)

    def steps(self, *, only: str | None = None) -> int:
        """Units of work for one arm."""
        return sum(1 if measure == "multiple_choice" else 2 for measure in self._measures(only))

    def measure(
        self,
        arm: Arm,
        questions: Sequence[Question],
        ledger: Ledger,
        progress: Progress,
        *,
        only: str | None = None,
    ) -> Measured:
        """Measure one arm on some of the questions.

        Args:
            arm: what is measured.
            questions: on which questions.
            ledger: where units are recorded.
            progress: told of every unit.
            only: measure only what this metric needs; None: all that the spec asks for.
        """
        measured = Measured()
        for measure in self._measures(only):
            if measured.not_finite is not None:
                break
            if measure == "multiple_choice":
                self._multiple_choice(arm, questions, ledger, progress, measured)
            else:
                self._generation(arm, questions, ledger, progress, measured)
        return measured

    def _measures(self, only: str | None) -> Sequence[str]:
        if only is None:
            return self.spec.measure
        return ("multiple_choice",) if only.startswith("mc") else ("generation",)

    def _multiple_choice(
        self,
        arm: Arm,
        questions: Sequence[Question],
        ledger: Ledger,
        progress: Progress,
        measured: Measured,
    ) -> None:
        identity = arm.identity | {
            "unit": "multiple_choice",
            "prompts": self.prompts_sha256,
            "questions": data_sha256(questions),
        }

        def work() -> dict[str, Any]:
            with arm.open() as m:
                scores = score_choices(m, self.prompts, questions, batch_size=self.spec.batch_size)
            return {
                "scores": {
                    score.key: {
                        "mc1": score.mc1,
                        "mc2": score.mc2,
                        "mc3": score.mc3,
                        "correct": list(score.correct),
                        "incorrect": list(score.incorrect),
                    }
                    for score in scores.questions
                },
                "receipts": _plain(scores.receipts),
                "tokens": scores.tokens,
                "from_scratch": scores.from_scratch,
            }

        result = _done("multiple_choice", identity, marking(arm.swept, work), ledger, progress, measured)
        if measured.not_finite is not None:
            return
        for metric in ("mc1", "mc2", "mc3"):
            measured.mean(metric, (score[metric] for score in result["scores"].values()))
        measured.receipts["multiple_choice"] = result["receipts"]
        for key, score in result["scores"].items():
            values = {metric: score[metric] for metric in ("mc1", "mc2", "mc3")}
            measured.questions.setdefault(key, {}).update(values)

    def _generation(
        self,
        arm: Arm,
        questions: Sequence[Question],
        ledger: Ledger,
        progress: Progress,
        measured: Measured,
    ) -> None:
        identity = arm.identity | {
            "unit": "generation",
            "prompts": self.prompts_sha256,
            "questions": [question.key for question in questions],
            "max_new_tokens": self.spec.max_new_tokens,
        }

        def work() -> dict[str, Any]:
            with arm.open() as m:
                answers, receipts = answer_questions(
                    m,
                    self.prompts,
                    questions,
                    max_new_tokens=self.spec.max_new_tokens,
                    batch_size=self.spec.batch_size,
                )
            by_key = {question.key: answer for question, answer in zip(questions, answers, strict=True)}
            return {"answers": by_key, "receipts": _plain(receipts)}

        generated = _done("generation", identity, marking(arm.swept, work), ledger, progress, measured)
        if measured.not_finite is not None:
            return
        measured.receipts["generation"] = generated["receipts"]
        for key, answer in generated["answers"].items():
            measured.questions.setdefault(key, {})["answer"] = answer
        measured.mean("empty", (not answer for answer in generated["answers"].values()))
        self._judge(questions, generated["answers"], ledger, progress, measured)

    def _judge(
        self,
        questions: Sequence[Question],
        answers: Mapping[str, str],
        ledger: Ledger,
        progress: Progress,
        measured: Measured,
    ) -> None:
        judge = self.judge
        if judge is None:
            raise ValueError("answers are judged only where generation is measured")
        about = judge.identity(BOTH)
        identity = {
            "unit": "judgement",
            "judge": about,
            "questions": data_sha256(questions),
            "answers": digest(dict(answers)),
        }

        def work() -> dict[str, Any]:
            rows = [Answer(q.question, answers[q.key], q.references, q.incorrect) for q in questions]
            found: dict[str, Any] = {}
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
            return {"judgements": found, "usage": judge.usage(), MISSING: missing}

        judged = _done("judgement", identity, work, ledger, progress, measured)["judgements"]
        for metric, by_key in judged.items():
            verdicts = [j["verdict"] for j in by_key.values() if j["verdict"] is not None]
            measured.mean(metric, verdicts)
            measured.counts[f"{metric}_without_verdict"] = len(by_key) - len(verdicts)
            measured.counts[f"{metric}_missing"] = sum(j["missing"] for j in by_key.values())
            for key, j in by_key.items():
                measured.questions[key][metric] = j["verdict"]
                measured.questions[key][f"{metric}_p"] = j["p"]
                if j["missing"]:
                    measured.questions[key][f"{metric}_missing"] = j["reason"]
        true, info = measured.metrics.get("true"), measured.metrics.get("info")
        if true is not None and info is not None:
            # As published, the product of the means; and beside it the share of answers that are both.
            measured.metrics["true_info"] = Metric(mean=true.mean * info.mean, n=min(true.n, info.n))
            both = [
                judged["true"][key]["verdict"] and judged["info"][key]["verdict"]
                for key in judged["true"]
                if judged["true"][key]["verdict"] is not None and judged["info"][key]["verdict"] is not None
            ]
            measured.mean("true_and_info", both)


class DivergenceMeasure:
    """CE and KL of arms on the same texts, always against the original model."""

    def __init__(self, spec: DivergenceSpec, folder: Path) -> None:
        self.spec = spec
        self.texts = read_texts(spec.texts, folder, limit=spec.limit)
        self._reference: Reference | None = None

    def steps(self) -> int:
        """Units of work for one arm."""
        return 1

    def measure(self, arm: Arm, original: IntervenedModel, ledger: Ledger, progress: Progress) -> Measured:
        """Measure one arm.

        Args:
            arm: what is measured.
            original: the untouched model.
            ledger: where units are recorded.
            progress: told of every unit.
        """
        identity = arm.identity | {
            "unit": "divergence",
            "texts": digest(list(self.texts)),
            "max_tokens": self.spec.max_tokens,
        }

        def work() -> dict[str, Any]:
            if self._reference is None:
                self._reference = Reference(
                    original, self.texts, max_tokens=self.spec.max_tokens, batch_size=self.spec.batch_size
                )
            with arm.open() as m:
                return divergence(m, self._reference)

        measured = Measured()
        result = _done("divergence", identity, marking(arm.swept, work), ledger, progress, measured)
        if measured.not_finite is not None:
            return measured
        texts = len(result["ce_by_text"])
        measured.metrics |= {name: Metric(mean=result[name], n=texts) for name in ("ce", "kl")}
        measured.receipts["divergence"] = result["receipts"]
        measured.texts = {
            "ce": result["ce_by_text"],
            "kl": result["kl_by_text"],
            "tokens": result["tokens_by_text"],
        }
        return measured


def _done(
    name: str,
    identity: Mapping[str, Any],
    work: Callable[[], dict[str, Any]],
    ledger: Ledger,
    progress: Progress,
    measured: Measured,
) -> dict[str, Any]:
    """The unit's result, now or from an earlier run; told to `progress` and named in `measured`."""
    was_done = ledger.has(identity)
    result = ledger.do(identity, work)
    progress(name.replace("_", " "), was_done=was_done)
    measured.units[name] = digest(identity)
    measured.not_finite = result.get("not_finite", measured.not_finite)
    return result


def _plain(receipts: Sequence[Receipt]) -> list[dict[str, Any]]:
    return [one for receipt in receipts for one in receipt.to_dict()]
