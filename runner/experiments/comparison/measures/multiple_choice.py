"""Multiple choice of arms: everyday knowledge, on questions that subvene ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from subvene.runner.edits.finite_points import marking
from subvene.runner.experiments.comparison.arms import Arm
from subvene.runner.experiments.comparison.measures.base import (
    ConditionMeasure,
    Measured,
    Place,
    Progress,
    Session,
    done,
    plain,
)
from subvene.runner.experiments.results import Item, QuestionText
from subvene.runner.files.ledger import digest
from subvene.runner.measures.multiple_choice import (
    ChoiceQuestion,
    choose,
    questions_sha256,
    shipped_questions,
)
from subvene.specs import MultipleChoiceSpec

_NAME = "multiple_choice_accuracy"


class MultipleChoiceMeasure(ConditionMeasure[ChoiceQuestion]):
    """The share of questions of which an arm takes the right choice."""

    def __init__(self, spec: MultipleChoiceSpec, folder: Path) -> None:
        self.spec = spec
        self.questions = shipped_questions(spec.limit)

    def steps(self, *, only: str | None = None) -> int:
        """One."""
        return 1

    def tested(self, place: Place) -> Sequence[ChoiceQuestion]:
        """All questions."""
        return self.questions

    def run(
        self,
        arm: Arm,
        items: Sequence[ChoiceQuestion],
        session: Session,
        progress: Progress,
        place: Place,
        *,
        only: str | None = None,
    ) -> Measured:
        """Measure one arm."""
        unit = {"unit": _NAME, "questions": questions_sha256(items)}

        def work() -> dict[str, Any]:
            with arm.open() as m:
                chosen, receipts = choose(m, items, batch_size=self.spec.batch_size, before=arm.system)
            return {"chosen": chosen, "receipts": plain(receipts)}

        measured = Measured()
        found = done(_NAME, arm.identity | unit, marking(arm.swept, work), session.ledger, progress, measured)
        if measured.not_finite is None:
            right = [c == one.answer for c, one in zip(found["chosen"], items, strict=True)]
            measured.mean("accuracy", right)
            measured.receipts[_NAME] = found["receipts"]
            measured.items = [
                Item(key=_key(one), scores={"accuracy": value})
                for one, value in zip(items, right, strict=True)
            ]
        return measured

    def data(self) -> Mapping[str, Any]:
        """The questions' hash."""
        return {"sha256": questions_sha256(self.questions), "questions": len(self.questions)}

    def questions_asked(self) -> dict[str, QuestionText]:
        """The questions with their right answers."""
        return {
            _key(one): QuestionText(question=one.question, best=one.choices[one.answer])
            for one in self.questions
        }


def _key(question: ChoiceQuestion) -> str:
    return digest(["choice", question.question])[:16]
