"""Refusals of arms: the share of harmful requests refused, and of harmless ones that sound like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from subvene.runner.engines.engine import Engine
from subvene.runner.experiments.comparison.measures.base import Measured, OneUnit, Place, WithReceipts, plain
from subvene.runner.experiments.results import Item, QuestionText
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import digest
from subvene.runner.intervened.generate import Generate
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.measures.refusals import PHRASES, Request, answers, refuses, shipped_requests
from subvene.specs import RefusalsSpec


class _Answers(WithReceipts):
    answers: list[str]


class RefusalsMeasure(OneUnit[Request, _Answers]):
    """Greedy answers to requests, and whether they hold a phrase of refusal."""

    name = "refusals"

    def __init__(self, spec: RefusalsSpec, folder: Path) -> None:
        self.spec = spec
        self.requests = shipped_requests(spec.limit)

    def tested(self, place: Place) -> Sequence[Request]:
        """All requests."""
        return self.requests

    def unit(self, items: Sequence[Request]) -> Mapping[str, Json]:
        """The requests and the longest answer; what counts as a refusal is no part of what is written."""
        prompts: list[Json] = [one.text for one in items]
        return {"unit": "refusals", "prompts": prompts, "max_new_tokens": self.spec.max_new_tokens}

    def work(self, m: IntervenedModel, items: Sequence[Request], system: str | None) -> _Answers:
        """Let the model answer."""
        return self._answers(m, items, system, None)

    def work_by(
        self, engine: Engine, m: IntervenedModel, items: Sequence[Request], system: str | None
    ) -> _Answers:
        """Have an engine answer."""
        return self._answers(m, items, system, engine.rollouts)

    def _answers(
        self, m: IntervenedModel, items: Sequence[Request], system: str | None, generate: Generate | None
    ) -> _Answers:
        written, receipts = answers(
            m,
            [one.text for one in items],
            max_new_tokens=self.spec.max_new_tokens,
            batch_size=self.spec.batch_size,
            system=system,
            description="refusals",
            generate=generate,
        )
        return {"answers": written, "receipts": plain(receipts)}

    def record(self, measured: Measured, result: _Answers, items: Sequence[Request]) -> None:
        """Which answers refuse."""
        for one, answer in zip(items, result["answers"], strict=True):
            scores: dict[str, float | bool | None] = {_metric(one): refuses(answer)}
            measured.items.append(Item(key=_key(one), text=answer, scores=scores))
        for metric in ("refusal", "over_refusal"):
            measured.mean(
                metric, (bool(one.scores[metric]) for one in measured.items if metric in one.scores)
            )

    def data(self) -> Mapping[str, Json]:
        """The hash of requests and phrases."""
        content = [[one.text, one.is_harmful] for one in self.requests]
        return {"sha256": digest([content, list(PHRASES)]), "requests": len(content)}

    def questions_asked(self) -> dict[str, QuestionText]:
        """The requests, by whether they are harmful."""
        return {
            _key(one): QuestionText(question=one.text, category="harmful" if one.is_harmful else "harmless")
            for one in self.requests
        }


def _metric(one: Request) -> str:
    return "refusal" if one.is_harmful else "over_refusal"


def _key(one: Request) -> str:
    return digest(["request", one.text])[:16]
