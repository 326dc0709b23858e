"""A model at an OpenAI-compatible endpoint: GPT-judge (Lin et al., 2022), a chat model, scores by tokens.

One request for each answer; its likeliest first tokens are read on the scale that is asked for. Where numbers
are split into digits, `server.digits` follows these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from subvene.runner.files.json_value import Json
from subvene.runner.judges.base import (
    Answer,
    AnyQuality,
    Aspect,
    Identity,
    Judge,
    JudgeError,
    ModelField,
    Quality,
    Usage,
)
from subvene.runner.judges.scales import yes_no
from subvene.runner.judges.scales.numbers import says_refusal, whole_numbers, written_score
from subvene.runner.judges.scales.yes_no import (
    ASPECTS,
    BOTH,
    Judgement,
    aspect_of,
    chat_messages,
    completion_prompt,
    read_judgement,
)
from subvene.runner.judges.scales.zero_to_hundred import COHERENCE, Score, as_completion, filled
from subvene.runner.judges.server.client import Endpoint, Messages
from subvene.runner.judges.server.digits import NO_DIGITS, Digits, probabilities
from subvene.runner.judges.server.prices import with_cost
from subvene.runner.judges.server.replies import NoReply, Reply
from subvene.runner.judges.training.measured import known_accuracy

if TYPE_CHECKING:
    from subvene.specs.judges import OpenAIJudgeSpec

# How many of the likeliest first tokens are asked for, where the spec does not say.
_TOP_YES_NO = {"completions": 5, "chat": 20}
_TOP_NUMBERS = 20
# REFUSAL is up to five tokens.
_TEXT = 6
_QUESTION = "What is the capital of France?"
_PROBE = Answer(_QUESTION, "Paris.")
_LONG_PROBE = Answer(_QUESTION, "The capital of France is Paris.")


class EndpointJudge(Judge):
    """`truth_model` is asked for truth and traits, `info_model` for the rest; they may be the same.

    Args:
        spec: the endpoint, the form and the models. `top_logprobs: 0` (chat only) reads the reply's text.
        folder: unused; every judge is made alike.
        cache: where replies are kept; None: `judgements` in subvene's cache folder.
    """

    kind: ClassVar[str] = "openai"

    def __init__(self, spec: OpenAIJudgeSpec, folder: Path, *, cache: Path | None = None) -> None:
        self._spec = spec
        self._endpoint = Endpoint(
            base_url=spec.base_url,
            api_key_env=spec.api_key_env,
            concurrency=spec.concurrency,
            max_retries=spec.max_retries,
            timeout=spec.timeout,
            cache=cache,
        )
        self._digits = Digits(self._endpoint, spec.form, self._top(COHERENCE), _TEXT)

    def _top(self, quality: AnyQuality) -> int:
        if self._spec.top_logprobs is not None:
            return self._spec.top_logprobs
        return _TOP_YES_NO[self._spec.form] if quality.scale == yes_no.SCALE else _TOP_NUMBERS

    def _model(self, field: ModelField) -> str:
        return self._spec.truth_model if field == "truth_model" else self._spec.info_model

    def check(self, qualities: Sequence[AnyQuality]) -> None:
        """Ask for the models' names, then each model one short question, whose reply is kept.

        Raises:
            JudgeError: no key, no server, no such model, no log-probabilities, or numbers that are split into
                digits by a server that does not continue a reply.
        """
        first: dict[ModelField, AnyQuality] = {}
        for quality in qualities:
            first.setdefault(quality.model, quality)
        fields: tuple[ModelField, ...] = ("info_model", "truth_model")
        asked = {self._model(field): first[field] for field in fields if field in first}
        self._endpoint.check(list(asked))
        for model, quality in asked.items():
            self._try(model, quality)

    def _try(self, model: str, quality: AnyQuality) -> None:
        where = f"{self._endpoint.base_url}: {model}"
        says_yes_no = quality.scale == yes_no.SCALE
        probe = _PROBE if says_yes_no else _LONG_PROBE
        (reply,) = self._replies([probe], quality, "checking the judge", checking=True)
        if isinstance(reply, NoReply) and reply.no_log_probs:
            read = "the reply's text" if says_yes_no else "the number in the reply's text"
            raise JudgeError(
                f"{where} gives no log-probabilities, asked in the form {self._spec.form}; "
                f"`top_logprobs: 0` with `form: chat` reads {read} instead"
            )
        if isinstance(reply, NoReply):
            raise JudgeError(f"{where}: {reply.reason}")
        if not says_yes_no and self._digits.split(model, reply) and not self._digits.continues(model):
            raise JudgeError(f"{where} {NO_DIGITS}")

    def yes_no(self, answers: Sequence[Answer], aspect: Aspect) -> list[Judgement]:
        """The probability of yes against no as the first token; what is known from earlier is not asked."""
        replies = self._replies(answers, ASPECTS[aspect], f"judging {aspect}")
        return [read_judgement(reply, any_case=self._spec.form == "chat") for reply in replies]

    def zero_to_hundred(self, answers: Sequence[Answer], quality: Quality[Score]) -> list[Score]:
        """The expected number; replies that are known from earlier are not asked for."""
        model, description = self._model(quality.model), f"judging {quality.name}"
        replies = self._replies(answers, quality, description)
        scores: list[Score] = []
        split: list[tuple[int, str, Reply]] = []
        for i, (answer, reply) in enumerate(zip(answers, replies, strict=True)):
            if isinstance(reply, NoReply):
                scores.append(Score(None, False, reply.reason, missing=True))
            elif not self._top(quality):
                scores.append(written_score(reply.text))
            else:
                score = whole_numbers(probabilities(reply)).score(refused=says_refusal(reply.text))
                # The first digits are as likely as all numbers together, or likelier.
                if score.value is not None and self._digits.split(model, reply):
                    split.append((i, filled(quality, answer), reply))
                    score = Score(None, score.refused, f"{model} {NO_DIGITS}")
                scores.append(score)
        if split and self._digits.continues(model):
            followed = self._digits.follow(model, [one[1:] for one in split], description)
            for (i, _, _), score in zip(split, followed, strict=True):
                scores[i] = score
        # A response cannot refuse to be coherent.
        return [replace(one, refused=False) for one in scores] if quality == COHERENCE else scores

    def _replies(
        self, answers: Sequence[Answer], quality: AnyQuality, description: str, *, checking: bool = False
    ) -> list[Reply | NoReply]:
        top = self._top(quality)
        # Where the text is what is read, a few tokens of it: a word may be more than one.
        length = (1 if top else 4) if quality.scale == yes_no.SCALE else _TEXT
        return self._endpoint.first_tokens(
            self._model(quality.model),
            [self._input(answer, quality) for answer in answers],
            top=top,
            max_tokens=length,
            description=description,
            checking=checking,
        )

    def _input(self, answer: Answer, quality: AnyQuality) -> str | Messages:
        if quality.scale != yes_no.SCALE:
            return self._digits.input(filled(quality, answer), "")
        if self._spec.form == "chat":
            return chat_messages(answer, aspect_of(quality), references=self._spec.references)
        return completion_prompt(answer, aspect_of(quality))

    def identity(self, qualities: Sequence[AnyQuality]) -> Identity:
        """The endpoint without any secret, the models, the form, and a digest of the words of ours."""
        says_yes_no = bool(qualities) and qualities[0].scale == yes_no.SCALE
        found: Identity = {
            "kind": self.kind,
            "base_url": self._endpoint.base_url,
            "form": self._spec.form,
            "truth_model": self._spec.truth_model,
            "info_model": self._spec.info_model,
            "top_logprobs": self._top(qualities[0] if says_yes_no else COHERENCE),
        }
        if not says_yes_no:
            return {**found, "words": _digest([COHERENCE.prompt, as_completion("")])}
        if self._spec.form == "chat":
            words = [chat_messages(_PROBE, "truth"), chat_messages(_PROBE, "info")]
            return {**found, "references": self._spec.references, "words": _digest(words)}
        return found

    def accuracies(self) -> dict[str, Json]:
        """What `subvene judge check` measured on this machine."""
        return {aspect: known_accuracy(self.identity(BOTH), aspect) for aspect in ASPECTS}

    def usage(self) -> Usage:
        """The endpoint's counts and `cost`: None without prices, or where a reply came without its counts."""
        return with_cost(self._endpoint.usage(), self._spec)


def _digest(words: object) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]
