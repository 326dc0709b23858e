"""TruthfulQA of one model: with its interventions, beside the same model without them.

Comparisons of conditions over seeds and folds are `subvene.runner.comparison`'s; this is the same measurement
for a model that somebody holds in hand.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from subvene.runner.intervened import IntervenedModel
from subvene.runner.judges import Answer, Aspect, Judge, make_judge
from subvene.runner.receipt import Receipt
from subvene.runner.truthfulqa.answering import answer_questions
from subvene.runner.truthfulqa.data import Question, data_sha256, load_questions, version_of
from subvene.runner.truthfulqa.prompts import load_prompts
from subvene.runner.truthfulqa.scoring import score_choices
from subvene.runner.truthfulqa.splits import limited
from subvene.specs import TruthfulQASpec

_METRICS: dict[Aspect, str] = {"truth": "true", "info": "info"}


def run_truthfulqa(m: IntervenedModel, spec: TruthfulQASpec, folder: Path) -> dict[str, Any]:
    """MC1, MC2, MC3, True and Info, with the interventions and without.

    Args:
        m: the model; one that is disabled, or has no interventions, gives the baseline alone.
        spec: the evaluation; `limit` is of all questions, since there are no folds here.
        folder: where relative files are looked for.

    Returns:
        `records`, one a condition; `answers` by condition and question key; and what was measured with:
        `version`, `questions`, `data_sha256`, `judge`, and by condition `receipts` and `from_scratch`.
    """
    questions = limited(load_questions(spec.data, folder), spec.limit)
    prompts = load_prompts(spec.preset, spec.primer, spec.instruction, folder)
    judge = None
    if "generation" in spec.measure:
        judge = make_judge(spec.judge, folder)
        judge.check()
    result: dict[str, Any] = {
        "kind": spec.kind,
        "version": version_of(questions),
        "questions": len(questions),
        "data_sha256": data_sha256(questions),
        "judge": None if judge is None else judge.describe(),
        "records": [],
        "answers": {},
        "receipts": {},
        "from_scratch": {},
    }
    for condition in ("baseline",) if m.is_disabled else ("baseline", "intervened"):
        record: dict[str, Any] = {"condition": condition}
        receipts: list[Receipt] = []
        with m.disabled() if condition == "baseline" else contextlib.nullcontext():
            if "multiple_choice" in spec.measure:
                scores = score_choices(m, prompts, questions, batch_size=spec.batch_size)
                record |= {"mc1": scores.mc1, "mc2": scores.mc2, "mc3": scores.mc3}
                result["from_scratch"][condition] = scores.from_scratch
                receipts += scores.receipts
            answers: list[str] = []
            if judge is not None:
                answers, passes = answer_questions(
                    m,
                    prompts,
                    questions,
                    max_new_tokens=spec.max_new_tokens,
                    batch_size=spec.batch_size,
                )
                receipts += passes
        if judge is not None:
            record |= _judged(judge, questions, answers)
            by_key = {question.key: answer for question, answer in zip(questions, answers, strict=True)}
            result["answers"][condition] = by_key
        result["records"].append(record)
        result["receipts"][condition] = [one for receipt in receipts for one in receipt.to_dict()]
    return result


def _judged(judge: Judge, questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Any]:
    rows = [
        Answer(question.question, answer, question.references, question.incorrect)
        for question, answer in zip(questions, answers, strict=True)
    ]
    verdicts = {aspect: [j.verdict for j in judge.judge(rows, aspect)] for aspect in judge.aspects}
    found: dict[str, Any] = {"empty": _mean(not answer for answer in answers)}
    for aspect, given in verdicts.items():
        found[_METRICS[aspect]] = _mean(verdict for verdict in given if verdict is not None)
        found[f"{_METRICS[aspect]}_without_verdict"] = given.count(None)
    if found.get("true") is not None and found.get("info") is not None:
        # As published, the product of the means; and beside it the share of answers that are both.
        found["true_info"] = found["true"] * found["info"]
        pairs = zip(verdicts["truth"], verdicts["info"], strict=True)
        found["true_and_info"] = _mean(t and i for t, i in pairs if t is not None and i is not None)
    return found


def _mean(values: Any) -> float | None:
    numbers = [float(value) for value in values]
    return statistics.fmean(numbers) if numbers else None
