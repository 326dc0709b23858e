"""Contrast of arms: how much likelier consistent answers are than opposed ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from subvene.runner.data.truthfulqa.questions import Question
from subvene.runner.engines.engine import Engine
from subvene.runner.experiments.comparison.measures.base import (
    Measured,
    OneUnit,
    Place,
    WithReceipts,
    plain,
)
from subvene.runner.experiments.results import Item, QuestionText, metric_of, metrics_of
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import digest
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.measures.contrast import ContrastText, contrast_texts, differences
from subvene.specs import ContrastSpec, SubveneError


class _Differences(WithReceipts):
    differences: list[float]


class ContrastMeasure(OneUnit[ContrastText, _Differences]):
    """log p(positive | prompt) − log p(negative | prompt), summed over tokens, in nats."""

    name = "contrast"

    def __init__(self, spec: ContrastSpec, folder: Path) -> None:
        self.spec = spec
        self.texts = contrast_texts(spec, folder)
        self._reserved = spec.validation or 0
        if self._reserved >= len(self.texts):
            raise SubveneError(
                f"evaluate contrast: validation takes {self._reserved} of {len(self.texts)} pairs and leaves "
                "none to test on; lower it, or give more pairs"
            )

    def tested(self, place: Place) -> Sequence[ContrastText]:
        """The pairs behind those for choosing."""
        return self.texts[self._reserved :]

    def validation(self, place: Place, held: Sequence[Mapping[str, Question]]) -> Sequence[ContrastText]:
        """The first pairs."""
        return self.texts[: self._reserved]

    def unit(self, items: Sequence[ContrastText]) -> Mapping[str, Json]:
        """The pairs."""
        return {"unit": "condition_contrast", "pairs": digest([list(text) for text in items])}

    def work(self, m: IntervenedModel, items: Sequence[ContrastText], system: str | None) -> _Differences:
        """Score both answers of every pair."""
        values, receipts = differences(m, items, batch_size=self.spec.batch_size, system=system)
        return {"differences": values, "receipts": plain(receipts)}

    def work_by(
        self, engine: Engine, m: IntervenedModel, items: Sequence[ContrastText], system: str | None
    ) -> _Differences:
        """Have an engine score them."""
        values, receipts = differences(
            m, items, batch_size=self.spec.batch_size, system=system, score=engine.log_probs
        )
        return {"differences": values, "receipts": plain(receipts)}

    def record(self, measured: Measured, result: _Differences, items: Sequence[ContrastText]) -> None:
        """The differences, and which side is preferred."""
        values = result["differences"]
        measured.metrics |= metrics_of({"contrast": metric_of(values)})
        measured.mean("contrast_preferred", (value > 0 for value in values))
        measured.items = [
            Item(key=_key(text), scores={"contrast": value, "contrast_preferred": value > 0})
            for text, value in zip(items, values, strict=True)
        ]

    def data(self) -> Mapping[str, Json]:
        """The pairs' hash."""
        return {"sha256": digest([list(text) for text in self.texts]), "pairs": len(self.texts)}

    def questions_asked(self) -> dict[str, QuestionText]:
        """The prompts, with the consistent answers."""
        return {
            _key(text): QuestionText(
                question=text[0] if isinstance(text[0], str) else str(text[0][-1]["content"]), best=text[1]
            )
            for text in self.texts
        }


def _key(text: ContrastText) -> str:
    return digest(list(text))[:16]
