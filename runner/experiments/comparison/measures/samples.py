"""Samples of arms: what each condition writes, for people to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from subvene.runner.data.text import prompt_ids
from subvene.runner.engines.engine import Engine
from subvene.runner.experiments.comparison.measures.base import Measured, OneUnit, Place, WithReceipts, plain
from subvene.runner.experiments.results import Item, QuestionText
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import digest
from subvene.runner.intervened.measured import measured_options
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.rollouts import Row
from subvene.runner.models.generation import answer_ends
from subvene.specs import SamplesSpec


class _Written(WithReceipts):
    written: list[str]


class SamplesMeasure(OneUnit[str, _Written]):
    """Greedy responses; no number comes of them."""

    name = "samples"

    def __init__(self, spec: SamplesSpec, folder: Path) -> None:
        self.spec = spec

    def tested(self, place: Place) -> Sequence[str]:
        """All prompts."""
        return self.spec.prompts

    def unit(self, items: Sequence[str]) -> Mapping[str, Json]:
        """The prompts and the longest answer."""
        most = self.spec.max_new_tokens
        return {"unit": "condition_samples", "prompts": list(items), "max_new_tokens": most}

    def work(self, m: IntervenedModel, items: Sequence[str], system: str | None) -> _Written:
        """Let the model write."""
        options = measured_options(
            m.model,
            max_new_tokens=self.spec.max_new_tokens,
            eos_token_id=sorted(answer_ends(m.model, m.tokenizer)) or None,
        )
        written = m.generate(list(items), system=system, **options)
        told = [] if m.receipt is None or m.is_disabled else [m.receipt]
        return {"written": written, "receipts": plain(told)}

    def work_by(
        self, engine: Engine, m: IntervenedModel, items: Sequence[str], system: str | None
    ) -> _Written:
        """Let an engine write, the likeliest token at each step."""
        rows = [
            Row(
                tuple(prompt_ids(m.tokenizer, prompt, system=system)),
                temperature=0.0,
                max_new_tokens=self.spec.max_new_tokens,
            )
            for prompt in items
        ]
        answers, told = engine.rollouts(m, rows, description="samples")
        tokens = [list(answer.tokens) for answer in answers]
        return {
            "written": m.tokenizer.batch_decode(tokens, skip_special_tokens=True),
            "receipts": plain(told),
        }

    def record(self, measured: Measured, result: _Written, items: Sequence[str]) -> None:
        """What it wrote."""
        measured.items = [
            Item(key=_key(prompt), text=text) for prompt, text in zip(items, result["written"], strict=True)
        ]

    def data(self) -> Mapping[str, Json]:
        """The prompts' hash."""
        return {"sha256": digest(list(self.spec.prompts))}

    def questions_asked(self) -> dict[str, QuestionText]:
        """The prompts."""
        return {_key(prompt): QuestionText(question=prompt) for prompt in self.spec.prompts}


def _key(prompt: str) -> str:
    return digest(["sample", prompt])[:16]
