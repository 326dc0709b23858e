"""Divergence of arms: CE and KL on the same texts, always against the original model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from subvene.runner.data.texts import read_texts
from subvene.runner.data.truthfulqa.questions import Question
from subvene.runner.experiments.comparison.arms import Arm
from subvene.runner.experiments.comparison.measures.base import (
    ConditionMeasure,
    Measured,
    Place,
    Progress,
    Session,
    done_of,
)
from subvene.runner.experiments.results import Item, Metric, QuestionText
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import Ledger, digest
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.measures.divergence import Divergence, Reference, divergence
from subvene.specs import DivergenceSpec, SubveneError


class DivergenceMeasure(ConditionMeasure[str]):
    """CE and KL of arms on the same texts, always against the original model."""

    def __init__(self, spec: DivergenceSpec, folder: Path) -> None:
        self.spec = spec
        self.texts = read_texts(spec.texts, folder, limit=spec.limit)
        self._reserved = spec.validation or 0
        if self._reserved >= len(self.texts):
            raise SubveneError(
                f"evaluate divergence: validation takes {self._reserved} of {len(self.texts)} texts and "
                "leaves none to test on; lower it, or give more texts"
            )
        self._references: dict[str, Reference] = {}

    def steps(self, *, only: str | None = None) -> int:
        """Units of work for one arm."""
        return 1

    def measure(
        self,
        arm: Arm,
        original: IntervenedModel,
        ledger: Ledger,
        progress: Progress,
        texts: Sequence[str] | None = None,
    ) -> Measured:
        """Measure one arm.

        Args:
            arm: what is measured.
            original: the untouched model.
            ledger: where units are recorded.
            progress: told of every unit.
            texts: on which; None: all that conditions are tested on.
        """
        given = self.texts[self._reserved :] if texts is None else texts
        sha256 = digest(list(given))
        identity = arm.identity | {
            "unit": "divergence",
            "texts": sha256,
            "max_tokens": self.spec.max_tokens,
        }

        def work() -> Divergence:
            if sha256 not in self._references:
                self._references[sha256] = Reference(
                    original, given, max_tokens=self.spec.max_tokens, batch_size=self.spec.batch_size
                )
            with arm.open() as m:
                return divergence(m, self._references[sha256], before=arm.system)

        measured = Measured()
        result = done_of(arm, "divergence", identity, work, ledger, progress, measured)
        if result is None:
            return measured
        n = len(result["ce_by_text"])
        measured.metrics["ce"] = Metric(mean=result["ce"], n=n)
        measured.metrics["kl"] = Metric(mean=result["kl"], n=n)
        measured.receipts["divergence"] = result["receipts"]
        measured.texts = {
            "ce": result["ce_by_text"],
            "kl": result["kl_by_text"],
            "tokens": [float(tokens) for tokens in result["tokens_by_text"]],
        }
        return measured

    def tested(self, place: Place) -> Sequence[str]:
        """The texts behind those for budgets."""
        return self.texts[self._reserved :]

    def validation(self, place: Place, held: Sequence[Mapping[str, Question]]) -> Sequence[str]:
        """The first texts."""
        return self.texts[: self._reserved]

    def run(
        self,
        arm: Arm,
        items: Sequence[str],
        session: Session,
        progress: Progress,
        place: Place,
        *,
        only: str | None = None,
    ) -> Measured:
        """As `measure`, with what was measured of each text among the items."""
        measured = self.measure(arm, session.original, session.ledger, progress, items)
        columns = (measured.texts.get(name, []) for name in ("ce", "kl", "tokens"))
        rows = list(zip(*columns, strict=True))
        # Texts that are too short to be measured are left out of all columns, but stand among the texts.
        if len(rows) == len(items):
            measured.items = [
                Item(key=_key(text), scores={"ce": ce, "kl": kl}, tokens=int(tokens))
                for text, (ce, kl, tokens) in zip(items, rows, strict=True)
            ]
        return measured

    def data(self) -> Mapping[str, Json]:
        """The texts' hash."""
        return {"sha256": digest(list(self.texts)), "texts": len(self.texts)}

    def questions_asked(self) -> dict[str, QuestionText]:
        """The texts."""
        return {_key(text): QuestionText(question=text) for text in self.texts}


def _key(text: str) -> str:
    return digest(["text", text])[:16]
