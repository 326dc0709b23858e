"""Samples of arms: what each condition writes, for people to read."""

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
)
from subvene.runner.experiments.results import Item, QuestionText
from subvene.runner.files.ledger import digest
from subvene.runner.intervened.measured import measured_options
from subvene.specs import SamplesSpec


class SamplesMeasure(ConditionMeasure[str]):
    """Greedy responses; no number comes of them."""

    def __init__(self, spec: SamplesSpec, folder: Path) -> None:
        self.spec = spec

    def steps(self, *, only: str | None = None) -> int:
        """One."""
        return 1

    def tested(self, place: Place) -> Sequence[str]:
        """All prompts."""
        return self.spec.prompts

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
        """Let one arm write."""
        most = self.spec.max_new_tokens
        unit = {"unit": "condition_samples", "prompts": list(items), "max_new_tokens": most}

        def work() -> dict[str, Any]:
            with arm.open() as m:
                options = measured_options(m.model, max_new_tokens=most)
                written = m.generate(list(items), system=arm.system, **options)
                receipt = None if m.receipt is None or m.is_disabled else m.receipt.to_dict()
            return {"written": written, "receipts": receipt or []}

        measured = Measured()
        found = done(
            "samples", arm.identity | unit, marking(arm.swept, work), session.ledger, progress, measured
        )
        if measured.not_finite is None:
            measured.receipts["samples"] = found["receipts"]
            measured.items = [
                Item(key=_key(prompt), text=text)
                for prompt, text in zip(items, found["written"], strict=True)
            ]
        return measured

    def data(self) -> Mapping[str, Any]:
        """The prompts' hash."""
        return {"sha256": digest(list(self.spec.prompts))}

    def questions_asked(self) -> dict[str, QuestionText]:
        """The prompts."""
        return {_key(prompt): QuestionText(question=prompt) for prompt in self.spec.prompts}


def _key(prompt: str) -> str:
    return digest(["sample", prompt])[:16]
