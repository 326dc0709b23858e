"""Contrast of arms: how much likelier consistent answers are than opposed ones."""

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
from subvene.runner.experiments.results import Item, Metric, QuestionText
from subvene.runner.files.ledger import digest
from subvene.runner.files.statistics import mean_and_sd
from subvene.runner.measures.contrast import ContrastText, contrast_texts, differences
from subvene.specs import ContrastSpec, SubveneError


class ContrastMeasure(ConditionMeasure[ContrastText]):
    """log p(positive | prompt) − log p(negative | prompt), summed over tokens, in nats."""

    def __init__(self, spec: ContrastSpec, folder: Path) -> None:
        self.spec = spec
        self.texts = contrast_texts(spec, folder)
        self._reserved = spec.validation or 0
        if self._reserved >= len(self.texts):
            raise SubveneError(
                f"evaluate contrast: validation takes {self._reserved} of {len(self.texts)} pairs and leaves "
                "none to test on; lower it, or give more pairs"
            )

    def steps(self, *, only: str | None = None) -> int:
        """One."""
        return 1

    def tested(self, place: Place) -> Sequence[ContrastText]:
        """The pairs behind those for choosing."""
        return self.texts[self._reserved :]

    def validation(self, place: Place, held: Sequence[Mapping[str, Any]]) -> Sequence[ContrastText]:
        """The first pairs."""
        return self.texts[: self._reserved]

    def run(
        self,
        arm: Arm,
        items: Sequence[ContrastText],
        session: Session,
        progress: Progress,
        place: Place,
        *,
        only: str | None = None,
    ) -> Measured:
        """Measure one arm."""
        unit = {"unit": "condition_contrast", "pairs": digest([list(text) for text in items])}

        def work() -> dict[str, Any]:
            with arm.open() as m:
                values, receipts = differences(m, items, batch_size=self.spec.batch_size, system=arm.system)
            return {"differences": values, "receipts": plain(receipts)}

        measured = Measured()
        found = done(
            "contrast", arm.identity | unit, marking(arm.swept, work), session.ledger, progress, measured
        )
        if measured.not_finite is None:
            values = found["differences"]
            mean, sd = mean_and_sd(values)
            if mean is not None:
                measured.metrics["contrast"] = Metric(mean=mean, sd=sd, n=len(values))
            measured.mean("contrast_preferred", (value > 0 for value in values))
            measured.receipts["contrast"] = found["receipts"]
            measured.items = [
                Item(key=_key(text), scores={"contrast": value, "contrast_preferred": value > 0})
                for text, value in zip(items, values, strict=True)
            ]
        return measured

    def data(self) -> Mapping[str, Any]:
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
