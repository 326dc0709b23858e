"""Multiple choice of arms: everyday knowledge, on questions that subvene ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from subvene.runner.engines.engine import Engine
from subvene.runner.experiments.comparison.measures.base import (
    Measured,
    OneUnit,
    Place,
    WithReceipts,
    plain,
)
from subvene.runner.experiments.results import Item, QuestionText
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import digest
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.measures.multiple_choice import (
    ChoiceQuestion,
    choose,
    questions_sha256,
    shipped_questions,
)
from subvene.specs import MultipleChoiceSpec


class _Chosen(WithReceipts):
    chosen: list[int]


class MultipleChoiceMeasure(OneUnit[ChoiceQuestion, _Chosen]):
    """The share of questions of which an arm takes the right choice."""

    name = "multiple_choice_accuracy"

    def __init__(self, spec: MultipleChoiceSpec, folder: Path) -> None:
        self.spec = spec
        self.questions = shipped_questions(spec.limit)

    def tested(self, place: Place) -> Sequence[ChoiceQuestion]:
        """All questions."""
        return self.questions

    def unit(self, items: Sequence[ChoiceQuestion]) -> Mapping[str, Json]:
        """The questions."""
        return {"unit": self.name, "questions": questions_sha256(items)}

    def work(self, m: IntervenedModel, items: Sequence[ChoiceQuestion], system: str | None) -> _Chosen:
        """Let the model choose."""
        chosen, receipts = choose(m, items, batch_size=self.spec.batch_size, before=system)
        return {"chosen": chosen, "receipts": plain(receipts)}

    def work_by(
        self, engine: Engine, m: IntervenedModel, items: Sequence[ChoiceQuestion], system: str | None
    ) -> _Chosen:
        """Have an engine score the choices."""
        chosen, receipts = choose(
            m, items, batch_size=self.spec.batch_size, before=system, score=engine.log_probs
        )
        return {"chosen": chosen, "receipts": plain(receipts)}

    def record(self, measured: Measured, result: _Chosen, items: Sequence[ChoiceQuestion]) -> None:
        """Which choices are right."""
        right = [c == one.answer for c, one in zip(result["chosen"], items, strict=True)]
        measured.mean("accuracy", right)
        measured.items = [
            Item(key=_key(one), scores={"accuracy": value}) for one, value in zip(items, right, strict=True)
        ]

    def data(self) -> Mapping[str, Json]:
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
