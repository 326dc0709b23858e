"""What a judged share is worth: null rows, answers that are no evasions, and the judge's own mistakes.

Next to the judged shares of a study's conditions stand those of models that say one thing whatever is
asked, judged by the same judge on the same questions; the shares over answers that do not evade; and each
share as it would be without the judge's mistakes (`judges.correction`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from pydantic import Field, JsonValue

from subvene.runner.data.truthfulqa.questions import Question, data_sha256
from subvene.runner.experiments.results import Condition, Item, Record, Results
from subvene.runner.experiments.rows import by_label
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import Ledger, digest
from subvene.runner.judges import BOTH, INFO, TRUTH, Answer, Judge, Judgement, Quality
from subvene.runner.judges.correction import CorrectionError, ErrorRates, corrected
from subvene.runner.judges.evasions import is_evasive
from subvene.runner.judges.nulls import null_answers

SECTION = "judged_shares"
#: What the name of a metric ends with that is a second judge's.
SECOND = "_second"
_ASPECTS = {"true": "truth", "info": "info"}
_QUALITIES: dict[str, Quality[Judgement]] = {"true": TRUTH, "info": INFO}
Verdicts = Mapping[str, bool | None]
"""By `true` and `info` what a judge says of one answer; None, or not there, where it does not tell."""


class Shares(Record):
    """Of some answers the share that is judged to have a quality; None without a verdict.

    Attributes:
        true: that are true.
        info: that are informative.
        true_and_info: that are both.
        n: how many answers there are.
    """

    true: float | None = None
    info: float | None = None
    true_and_info: float | None = None
    n: int


class CorrectedShare(Record):
    """A share without the judge's mistakes, and its interval (`judges.correction.corrected`)."""

    share: float
    low: float
    high: float


class JudgedRow(Record):
    """The answers of one condition, over its seeds and folds.

    Attributes:
        label: what tables call it.
        all: over all answers.
        answering: over those that do not evade.
        evasive: share of answers that evade; nobody is asked, it is a rule (`judges.evasions`).
        corrected: `true` and `info` over all answers without the judge's mistakes; its interval counts a
            question once, however many seeds answered it.
    """

    label: str
    all: Shares
    answering: Shares
    evasive: float
    corrected: dict[str, CorrectedShare] = Field(default={})


class Rates(Record):
    """How often the judge is right on models' answers, by what people say, and on how many labels."""

    sensitivity: float
    specificity: float
    n_yes: int
    n_no: int


class Opinions(Record):
    """How far two judges agree on the answers on which both have a verdict.

    Attributes:
        share: of answers on which they say the same.
        kappa: Cohen's (1960): 0 is what their shares of yes alone would give, 1 is always; None where one of
            them says the same of every answer, and there is nothing to agree on.
        n: how many answers.
    """

    share: float
    kappa: float | None
    n: int


class JudgedShares(Record):
    """What a study's judged shares are worth.

    Attributes:
        rows: the conditions.
        nulls: by what the model says that says one thing.
        rates: by `true` and `info`; nothing where the judge states none.
        agreement: by `true` and `info`, with a second judge; empty without one.
    """

    rows: tuple[JudgedRow, ...] = ()
    nulls: dict[str, Shares] = Field(default={})
    rates: dict[str, Rates] = Field(default={})
    agreement: dict[str, Opinions] = Field(default={})


class _Nulls(TypedDict):
    nulls: dict[str, dict[str, dict[str, bool | None]]]
    missing: int


def judged_shares_in(results: Results) -> JudgedShares:
    """Those of a run; empty where nothing was judged.

    Raises:
        ResultsError: the section is not of its type.
    """
    return results.section(SECTION, JudgedShares) or JudgedShares()


def judged_section(
    conditions: Sequence[Condition], judge: Judge | None, questions: Iterable[Question], ledger: Ledger
) -> dict[str, JsonValue]:
    """The section under its name; nothing where no answer was judged.

    Args:
        conditions: with their answers.
        judge: that judged them.
        questions: among which are those that they answered.
        ledger: where the verdicts on the nulls are a unit of their own.
    """
    answered = {item.key for one in conditions for item in one.items if _judged(item)}
    asked = [question for question in questions if question.key in answered]
    if judge is None or not asked:
        return {}
    rates = _rates(judge)
    rows = (_row(label, cells, rates) for label, cells in by_label(conditions).items())
    section = JudgedShares(
        rows=tuple(row for row in rows if row is not None),
        nulls={label: shares(said.values()) for label, said in _nulls(judge, asked, ledger).items()},
        rates={
            name: Rates(
                sensitivity=one.sensitivity, specificity=one.specificity, n_yes=one.n_yes, n_no=one.n_no
            )
            for name, one in rates.items()
        },
        agreement=_agreement(conditions),
    )
    return {SECTION: section.model_dump(mode="json")}


def shares(verdicts: Iterable[Verdicts]) -> Shares:
    """The shares of some answers; True∧Info is over those of which both are known."""
    given = list(verdicts)
    true, info = ([one.get(name) for one in given] for name in ("true", "info"))
    both = [None if t is None or i is None else t and i for t, i in zip(true, info, strict=True)]
    return Shares(true=_share(true), info=_share(info), true_and_info=_share(both), n=len(given))


def _share(values: Iterable[bool | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _judged(item: Item) -> bool:
    return any(name in item.scores or name in item.missing for name in _ASPECTS)


def _verdicts(item: Item) -> Verdicts:
    return {name: None if (said := item.scores.get(name)) is None else bool(said) for name in _ASPECTS}


def _row(label: str, cells: Sequence[Condition], rates: Mapping[str, ErrorRates]) -> JudgedRow | None:
    items = [item for cell in cells for item in cell.items if _judged(item)]
    if not items:
        return None
    answering = [item for item in items if not is_evasive(item.text or "")]
    everything = shares(map(_verdicts, items))
    found: dict[str, CorrectedShare] = {}
    for name, one in rates.items():
        share = getattr(everything, name)
        n = len({item.key for item in items if item.scores.get(name) is not None})
        if share is not None:
            try:
                said = corrected(share, n, one)
            except CorrectionError:
                continue  # a judge that tells nothing apart: its rates stand in the table and say so
            found[name] = CorrectedShare(share=said.share, low=said.low, high=said.high)
    return JudgedRow(
        label=label,
        all=everything,
        answering=shares(map(_verdicts, answering)),
        evasive=1 - len(answering) / len(items),
        corrected=found,
    )


def _agreement(conditions: Sequence[Condition]) -> dict[str, Opinions]:
    """Over the answers of all conditions."""
    from sklearn.metrics import cohen_kappa_score

    found: dict[str, Opinions] = {}
    for name in _ASPECTS:
        pairs = [
            (bool(first), bool(second))
            for condition in conditions
            for item in condition.items
            if (first := item.scores.get(name)) is not None
            and (second := item.scores.get(f"{name}{SECOND}")) is not None
        ]
        if pairs:
            firsts, seconds = zip(*pairs, strict=True)
            told = len(set(firsts)) > 1 and len(set(seconds)) > 1
            found[name] = Opinions(
                share=sum(first == second for first, second in pairs) / len(pairs),
                kappa=float(cohen_kappa_score(firsts, seconds)) if told else None,
                n=len(pairs),
            )
    return found


def _rates(judge: Judge) -> dict[str, ErrorRates]:
    """Of models' own answers where the judge states that, else of all that it was measured on."""
    stated = judge.describe(BOTH).get("accuracy") or {}
    found: dict[str, ErrorRates] = {}
    for name, aspect in _ASPECTS.items():
        of = stated.get(aspect)
        which = of.get("of_which") if isinstance(of, dict) else None
        own = which.get("no_reference_answer") if isinstance(which, dict) else None
        rates = ErrorRates.of(own) or ErrorRates.of(of)
        if rates is not None:
            found[name] = rates
    return found


def _nulls(
    judge: Judge, questions: Sequence[Question], ledger: Ledger
) -> Mapping[str, Mapping[str, Mapping[str, bool | None]]]:
    """By null and question what the judge says; a unit of work."""
    said = null_answers(questions)
    identity: dict[str, Json] = {
        "unit": "judgement of nulls",
        "judge": judge.identity(BOTH),
        "questions": data_sha256(questions),
        "answers": digest({label: dict(by_key) for label, by_key in said.items()}),
    }

    def work() -> _Nulls:
        found: dict[str, dict[str, dict[str, bool | None]]] = {}
        missing = 0
        for label, by_key in said.items():
            answers = [Answer(q.question, by_key[q.key], q.references, q.incorrect) for q in questions]
            found[label] = {q.key: {} for q in questions}
            for name, quality in _QUALITIES.items():
                if judge.tells(quality):
                    for question, judged in zip(questions, judge.judge(answers, quality), strict=True):
                        found[label][question.key][name] = judged.verdict
                        missing += judged.missing
        return {"nulls": found, "missing": missing}

    return ledger.do(identity, work)["nulls"]
