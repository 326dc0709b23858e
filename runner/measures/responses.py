"""Responses to questions, generated and judged: what extraction, the sweep and the conditions all do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, Protocol, TypedDict

from pydantic import JsonValue

from subvene.runner.data.span import Text
from subvene.runner.data.text import prompt_ids
from subvene.runner.data.traits import Trait
from subvene.runner.edits.finite_points import SomeNotFinite, by_point, listed, over_finite_points
from subvene.runner.edits.receipt import merged
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import Result, digest
from subvene.runner.intervened.generate import Generate
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.own_sampling import OwnSampling
from subvene.runner.intervened.rollouts import Row, rollouts, row_seed
from subvene.runner.judges import COHERENCE, Answer, Judge, scored, shows
from subvene.specs import SamplingSpec


class Do(Protocol):
    """Does a unit of work under the identity of all that it depends on, or gives what is recorded of it."""

    def __call__(self, identity: Mapping[str, Json], work: Callable[[], Result], /) -> Result:
        """What `work` gives, as JSON has it."""


class _Text(TypedDict):
    prompt: Sequence[int]
    tokens: Sequence[int]
    start: int
    text: str
    ended: bool
    seed: int


class _Written(SomeNotFinite):
    responses: list[_Text]
    receipt: list[dict[str, JsonValue]] | None
    rows: NotRequired[list[int]]


class _Judged(TypedDict):
    score: float | None
    coherence: float | None
    refused: bool
    reason: str | None
    missing: NotRequired[Mapping[str, str | None]]


class Scores(TypedDict):
    """What a judge says of some answers, and how many verdicts it owes."""

    scores: list[_Judged]
    missing: int


EMPTY = "the response is empty"


@dataclass(frozen=True)
class Asked:
    """A question put to the model.

    Attributes:
        question: the user's turn.
        system: the system prompt, None for none of ours.
        strengths: by intervention name, those not named are 0; None: what the spec says.
        rollout: which of several responses to the same question.
        point: of a sweep, its layer and coefficient; None where nothing is swept.
    """

    question: str
    system: str | None = None
    strengths: Mapping[str, float] | None = None
    rollout: int = 0
    point: tuple[int, float] | None = None


@dataclass(frozen=True)
class Response:
    """What the model answered, and what the judge says of it.

    Attributes:
        asked: what it was asked.
        prompt: token ids of the prompt.
        tokens: token ids as they were generated, without the end.
        start: the first of `tokens` that belongs to the answer.
        text: the answer.
        ended: whether the model ended it.
        seed: of its sampling.
        score: of the trait, 0 to 100; None if there is none.
        coherence: 0 to 100; None if there is none.
        refused: whether the judge says that it refuses.
        reason: why there is no score.
        missing: of the two verdicts, `score` and `coherence`, those that the judge still owes, and why.
    """

    asked: Asked
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    start: int
    text: str
    ended: bool
    seed: int
    score: float | None
    coherence: float | None
    refused: bool
    reason: str | None
    missing: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def span(self) -> Text:
        """Prompt and response as token ids, the answer as what is read of them."""
        ids = (*self.prompt, *self.tokens)
        return Text(ids, len(self.prompt) + self.start, len(ids))


@dataclass(frozen=True)
class Answered:
    """Responses to everything that was asked, judged.

    Attributes:
        responses: in the order of what was asked, without those at points that are not finite.
        receipt: what the interventions did while they were generated, JSON values; None without any.
        not_finite: point → why there are no responses, in words.
    """

    responses: list[Response]
    receipt: list[dict[str, JsonValue]] | None
    not_finite: dict[tuple[Any, ...], str]


def respond(
    open_model: Callable[[], IntervenedModel],
    asked: Sequence[Asked],
    sampling: SamplingSpec,
    trait: Trait,
    judge: Judge,
    *,
    identity: Mapping[str, Json],
    seed: int,
    description: str,
    do: Do,
    points: Sequence[tuple[Any, ...]] | None = None,
    generate: Generate = rollouts,
) -> Answered:
    """Generate a response to everything asked, and judge it for the trait and for coherence.

    Two units of work: what the model writes is kept though the judge may owe verdicts, which the next run
    asks for.

    The seed of a response is made of the run's seed, the trait, the question, the system prompt and which
    rollout it is, not of the strengths: what differs between coefficients is the edit and not the dice.

    Args:
        open_model: gives the model; called if something is to be generated.
        asked: what is asked, once for each response.
        sampling: how it is generated.
        trait: for which it is judged.
        judge: who judges.
        identity: what the responses depend on, besides what is asked and the run's base, JSON values.
        seed: of the run.
        description: what the progress bar says.
        do: does a unit of work, or gives what is recorded of it.
        points: of a sweep, the point of each; one that is no longer finite is then left out and named.
        generate: generates the responses of rows.
    """
    about = {
        **identity,
        "trait": trait.sha256,
        "asked": [[one.question, one.system, one.rollout, one.strengths] for one in asked],
        "sampling": _said(sampling, open_model),
        "seed": seed,
    }

    def write(which: Sequence[int]) -> _Written:
        chosen = [asked[i] for i in which]
        return _written(open_model(), chosen, sampling, trait, seed, description, generate)

    def write_finite() -> _Written:
        if points is None:
            return write(range(len(asked)))
        kept, written, marked = over_finite_points(points, write)
        empty: _Written = {"responses": [], "receipt": None}
        whole: _Written = {**(written or empty), "rows": kept}
        if marked:
            whole["not_finite"] = listed(marked)["not_finite"]
        return whole

    written = do(about, write_finite)
    asked = [asked[i] for i in written.get("rows", range(len(asked)))]
    texts = [one["text"] for one in written["responses"]]
    exchanges = [Answer(one.question, text) for one, text in zip(asked, texts, strict=True) if text]
    unit: dict[str, Json] = {
        "unit": "scores",
        "trait": trait.sha256,
        "judge": judge.identity(scored([trait])),
        "exchanges": digest([[one.question, one.answer] for one in exchanges]),
    }
    scores = iter(do(unit, lambda: scores_of(exchanges, trait, judge))["scores"])
    empty: _Judged = {"score": None, "coherence": 0.0, "refused": False, "reason": EMPTY}
    responses = [
        _response(one, text, next(scores) if text["text"] else empty)
        for one, text in zip(asked, written["responses"], strict=True)
    ]
    return Answered(responses, written["receipt"], by_point(written))


def _said(sampling: SamplingSpec, open_model: Callable[[], IntervenedModel]) -> Mapping[str, JsonValue]:
    """What responses depend on; of a checkpoint's own settings their values, which its hash does not hold."""
    if sampling.settings == "given":
        return sampling.said()
    return {**sampling.said(), **OwnSampling.of(open_model().model).described()}


def _response(asked: Asked, written: _Text, judged: _Judged) -> Response:
    return Response(
        asked=asked,
        prompt=tuple(written["prompt"]),
        tokens=tuple(written["tokens"]),
        start=written["start"],
        text=written["text"],
        ended=written["ended"],
        seed=written["seed"],
        score=judged["score"],
        coherence=judged["coherence"],
        refused=judged["refused"],
        reason=judged["reason"],
        # Ledgers of earlier runs have a 0: what owes verdicts is not recorded.
        missing=judged.get("missing") or {},
    )


def _written(
    m: IntervenedModel,
    asked: Sequence[Asked],
    sampling: SamplingSpec,
    trait: Trait,
    seed: int,
    description: str,
    generate: Generate,
) -> _Written:
    own = OwnSampling.of(m.model) if sampling.settings == "model" else None
    rows = [
        Row(
            prompt=tuple(prompt_ids(m.tokenizer, one.question, system=one.system)),
            seed=row_seed(seed, trait.name, one.question, one.system, one.rollout),
            strengths=one.strengths,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_new_tokens=sampling.max_new_tokens,
            own=own,
        )
        for one in asked
    ]
    written, receipts = generate(m, rows, batch_size=sampling.batch_size, description=description)
    told = merged(receipts, same_rows=True)
    return {
        "responses": [
            {
                "prompt": row.prompt,
                "tokens": rollout.tokens,
                "start": rollout.start,
                "text": rollout.text,
                "ended": rollout.ended,
                "seed": row.seed,
            }
            for row, rollout in zip(rows, written, strict=True)
        ],
        "receipt": told[0].to_dict() if told else None,
    }


def scores_of(exchanges: Sequence[Answer], trait: Trait, judge: Judge) -> Scores:
    """What a judge says of answers, for the trait and for coherence."""
    scores = judge.judge(exchanges, shows(trait)) if exchanges else []
    coherences = judge.judge(exchanges, COHERENCE) if exchanges else []
    missing = [
        {
            name: verdict.reason
            for name, verdict in (("score", score), ("coherence", coherence))
            if verdict.missing
        }
        for score, coherence in zip(scores, coherences, strict=True)
    ]
    found: list[_Judged] = [
        {
            "score": score.value,
            "coherence": coherence.value,
            "refused": score.refused,
            "reason": score.reason,
            "missing": owed,
        }
        for score, coherence, owed in zip(scores, coherences, missing, strict=True)
    ]
    return {"scores": found, "missing": sum(map(len, missing))}


def missing_reasons(responses: Sequence[Response]) -> Counter[str]:
    """Why verdicts on responses are missing, with how many are for each reason."""
    return Counter(str(reason) for response in responses for reason in response.missing.values())
