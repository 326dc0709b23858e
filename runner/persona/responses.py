"""Responses to questions, generated and judged: what extraction, the sweep and the conditions all do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from subvene.runner.intervened import IntervenedModel
from subvene.runner.judges.traits import Exchange, Score, TraitJudge
from subvene.runner.persona.traits import Trait
from subvene.runner.receipt import Receipt
from subvene.runner.rollouts import Row, rollouts, row_seed
from subvene.runner.text import prompt_ids
from subvene.specs import SamplingSpec

Do = Callable[[Mapping[str, Any], Callable[[], dict[str, Any]]], dict[str, Any]]
"""Does a unit of work under the identity of all that it depends on, or gives what is recorded of it."""

EMPTY = "the response is empty"


@dataclass(frozen=True)
class Asked:
    """A question put to the model.

    Attributes:
        question: the user's turn.
        system: the system prompt, None for none of ours.
        strengths: by intervention name, those not named are 0; None: what the spec says.
        rollout: which of several responses to the same question.
        about: what tells its caller what it is, JSON values.
    """

    question: str
    system: str | None = None
    strengths: Mapping[str, float] | None = None
    rollout: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)


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

    def to_dict(self) -> dict[str, Any]:
        """JSON values, which `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Response:
        """A response of a record."""
        own = {**values, "asked": Asked(**values["asked"])}
        return cls(**{**own, "prompt": tuple(own["prompt"]), "tokens": tuple(own["tokens"])})


def respond(
    m: IntervenedModel,
    asked: Sequence[Asked],
    sampling: SamplingSpec,
    trait: Trait,
    judge: TraitJudge,
    *,
    seed: int,
    description: str,
) -> tuple[list[Response], list[Receipt]]:
    """Generate a response to everything asked, and judge it for the trait and for coherence.

    The seed of a response is made of the run's seed, the trait, the question, the system prompt and which
    rollout it is, not of the strengths: what differs between coefficients is the edit and not the dice.

    Args:
        m: the model.
        asked: what is asked, once for each response.
        sampling: how it is generated.
        trait: for which it is judged.
        judge: who judges.
        seed: of the run.
        description: what the progress bar says.

    Returns:
        The responses in the order of `asked`, and the receipts of generating them.
    """
    rows = [
        Row(
            prompt=tuple(prompt_ids(m.tokenizer, one.question, system=one.system)),
            seed=row_seed(seed, trait.name, one.question, one.system, one.rollout),
            strengths=one.strengths,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_new_tokens=sampling.max_new_tokens,
        )
        for one in asked
    ]
    written, receipts = rollouts(m, rows, batch_size=sampling.batch_size, description=description)
    said = [i for i, one in enumerate(written) if one.text]
    exchanges = [Exchange(asked[i].question, written[i].text) for i in said]
    scores = dict(zip(said, judge.trait(trait, exchanges) if said else [], strict=True))
    coherences = dict(zip(said, judge.coherence(exchanges) if said else [], strict=True))
    found = []
    for i, (one, row, rollout) in enumerate(zip(asked, rows, written, strict=True)):
        score, coherence = scores.get(i, Score(None, reason=EMPTY)), coherences.get(i, Score(0.0))
        found.append(
            Response(
                asked=one,
                prompt=row.prompt,
                tokens=rollout.tokens,
                start=rollout.start,
                text=rollout.text,
                ended=rollout.ended,
                seed=row.seed,
                score=score.value,
                coherence=coherence.value,
                refused=score.refused,
                reason=score.reason,
            )
        )
    return found, receipts
