"""Traits and coherence judged by a model at an OpenAI-compatible endpoint (Chen et al., 2025).

One request for each response; its 20 likeliest first tokens give the score (`traits_scale`). Whether the
model has whole numbers as tokens shows in the reply. If all numbers among the likeliest tokens have one
digit, in this reply and in the one to a request for 57, the digits are followed by further requests, with the
digits so far appended to the prompt (`form: completions`) or as the beginning of the assistant's reply
(`form: chat`; llama.cpp goes on with a reply that was begun, others may start another one, which is found out
by a question whose continuation is unmistakable). Beginnings below 1 % are not followed, and numbers of two
digits other than 10 are taken to be complete.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subvene.runner.data.traits import Trait
from subvene.runner.judges.base import JudgeError
from subvene.runner.judges.endpoint import Endpoint, NoReply, Reply
from subvene.runner.judges.prices import with_cost
from subvene.runner.judges.prompts import COHERENCE
from subvene.runner.judges.traits import Exchange, Score, TraitJudge
from subvene.runner.judges.traits_scale import (
    Top,
    agreement,
    as_completion,
    digit_by_digit,
    says_refusal,
    splits_numbers,
    whole_numbers,
    written_score,
)

if TYPE_CHECKING:
    from subvene.specs.judges import OpenAIJudgeSpec

_TOP = 20
_CHECKING = "checking the judge"
# REFUSAL is up to five tokens.
_TEXT = 6
# A request more for every beginning that is at least so likely.
_FLOOR = 0.01
_PROBE = Exchange("What is the capital of France?", "The capital of France is Paris.")
# Asked where a reply leaves it open whether 57 could be one token.
_NUMBER = "Write the number 57 and nothing else."
# Whoever goes on with this says a comma; nobody begins a reply with one.
_BEGUN = (
    {"role": "user", "content": "Count from 1 to 20 on one line, with commas."},
    {"role": "assistant", "content": "1, 2, 3, 4, 5, 6, 7, 8"},
)


class OpenAITraitJudge(TraitJudge):
    """`truth_model` scores traits, `info_model` coherence; they may be the same.

    Args:
        spec: the endpoint, the form and the models. `top_logprobs` left out: 20; 0 (chat only): the score is
            the number that the reply's text begins with.
        cache: where replies are kept; None: `judgements` in subvene's cache folder.
    """

    def __init__(self, spec: OpenAIJudgeSpec, *, cache: Path | None = None) -> None:
        self._spec = spec
        self._top = _TOP if spec.top_logprobs is None else spec.top_logprobs
        self._endpoint = Endpoint(
            base_url=spec.base_url,
            api_key_env=spec.api_key_env,
            concurrency=spec.concurrency,
            max_retries=spec.max_retries,
            timeout=spec.timeout,
            cache=cache,
        )
        self._agreement: dict[str, dict[str, Any] | None] = {}
        self._whole: dict[str, bool] = {}
        self._goes_on: dict[str, bool] = {}

    def check(self, traits: Sequence[Trait]) -> None:
        """Ask for the models' names, then each model one short question, whose reply is kept.

        Raises:
            JudgeError: no key, no server, no such model, no log-probabilities, or numbers that are split into
                digits by a server that does not continue a reply.
        """
        prompts = {self._spec.info_model: COHERENCE}
        if traits:
            prompts[self._spec.truth_model] = traits[0].eval_prompt
        self._endpoint.check(list(prompts))
        for model, prompt in prompts.items():
            where = f"{self._endpoint.base_url}: {model}"
            (reply,) = self._replies(model, [_filled(prompt, _PROBE)], _CHECKING, checking=True)
            if isinstance(reply, NoReply) and reply.no_log_probs:
                raise JudgeError(
                    f"{where} gives no log-probabilities, asked in the form {self._spec.form}; "
                    "`top_logprobs: 0` with `form: chat` reads the number in the reply's text instead"
                )
            if isinstance(reply, NoReply):
                raise JudgeError(f"{where}: {reply.reason}")
            if self._splits(model, reply) and not self._continues(model):
                raise JudgeError(f"{where} {_NO_DIGITS}")

    def trait(self, trait: Trait, exchanges: Sequence[Exchange]) -> list[Score]:
        """See `TraitJudge.trait`; replies that are known from earlier are not asked for."""
        return self._scores(self._spec.truth_model, trait.eval_prompt, exchanges, f"judging {trait.name}")

    def coherence(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """See `TraitJudge.coherence`."""
        scores = self._scores(self._spec.info_model, COHERENCE, exchanges, "judging coherence")
        return [replace(one, refused=False) for one in scores]

    def _scores(
        self, model: str, prompt: str, exchanges: Sequence[Exchange], description: str
    ) -> list[Score]:
        prompts = [_filled(prompt, one) for one in exchanges]
        replies = self._replies(model, prompts, description)
        scores: list[Score] = []
        split: list[tuple[int, str, Reply]] = []
        for i, reply in enumerate(replies):
            if isinstance(reply, NoReply):
                scores.append(Score(None, False, reply.reason, missing=True))
            elif not self._top:
                scores.append(written_score(reply.text))
            else:
                score = whole_numbers(_probabilities(reply)).score(refused=says_refusal(reply.text))
                # The first digits are as likely as all numbers together, or likelier.
                if score.value is not None and self._splits(model, reply):
                    split.append((i, prompts[i], reply))
                    score = Score(None, score.refused, f"{model} {_NO_DIGITS}")
                scores.append(score)
        if split and self._continues(model):
            for (i, _, _), score in zip(split, self._digits(model, split, description), strict=True):
                scores[i] = score
        return scores

    def _digits(self, model: str, split: Sequence[tuple[int, str, Reply]], description: str) -> list[Score]:
        """Beginnings of at least 1 % are followed; 11 to 99, and 100, are taken to be complete."""
        failed: dict[int, str] = {}

        def following(asked: list[tuple[int, tuple[str, ...]]]) -> list[Top]:
            if not asked[0][1]:
                return [_probabilities(split[i][2]) for i, _ in asked]
            inputs = [self._input(split[i][1], "".join(path).strip()) for i, path in asked]
            replies = self._endpoint.first_tokens(
                model, inputs, top=self._top, max_tokens=1, description=description
            )
            tops: list[Top] = []
            for (i, _), reply in zip(asked, replies, strict=True):
                if isinstance(reply, NoReply):
                    failed[i] = reply.reason
                tops.append(_probabilities(reply) if isinstance(reply, Reply) else ())
            return tops

        found = digit_by_digit(len(split), following, floor=_FLOOR, ends=False)
        return [
            Score(None, False, failed[j], missing=True)
            if j in failed
            else one.score(refused=says_refusal(split[j][2].text))
            for j, one in enumerate(found)
        ]

    def _replies(
        self, model: str, prompts: Sequence[str], description: str, *, checking: bool = False
    ) -> list[Reply | NoReply]:
        return self._endpoint.first_tokens(
            model,
            [self._input(prompt, "") for prompt in prompts],
            top=self._top,
            max_tokens=_TEXT,
            description=description,
            checking=checking,
        )

    def _input(self, prompt: str, begun: str) -> Any:
        if self._spec.form == "completions":
            return as_completion(prompt) + begun
        messages = [{"role": "user", "content": prompt}]
        return [*messages, {"role": "assistant", "content": begun}] if begun else messages

    def _splits(self, model: str, reply: Reply) -> bool:
        """Whether the numbers in a reply are the first digits of longer ones."""
        if not splits_numbers(token for token, _ in reply.top):
            return False
        if model not in self._whole:
            (number,) = self._replies(model, [_NUMBER], _CHECKING)
            tokens = [token for token, _ in self._found_out(model, number).top]
            self._whole[model] = bool(tokens) and not splits_numbers(tokens)
        return not self._whole[model]

    def _continues(self, model: str) -> bool:
        """Whether the server goes on with a reply that was begun."""
        if self._spec.form == "completions":
            return True
        if model not in self._goes_on:
            (reply,) = self._endpoint.first_tokens(
                model, [_BEGUN], top=self._top, max_tokens=1, description=_CHECKING
            )
            # Some servers give back what was begun, too. One may also refuse a chat that ends so.
            refused = isinstance(reply, NoReply) and reply.refused
            said = "" if refused else self._found_out(model, reply).text.removeprefix(_BEGUN[1]["content"])
            self._goes_on[model] = said.lstrip().startswith(",")
        return self._goes_on[model]

    def _found_out(self, model: str, reply: Reply | NoReply) -> Reply:
        """The reply to a question about the server itself: all scores depend on it, so that it must come."""
        if isinstance(reply, NoReply):
            raise JudgeError(
                f"{self._endpoint.base_url}: {model}: how it writes numbers could not be found out: "
                f"{reply.reason}; run the same command again, replies that had come are kept"
            )
        return reply

    def identity(self, traits: Sequence[Trait]) -> dict[str, Any]:
        """The endpoint without any secret, the models, the form, a digest of the words for coherence."""
        return {
            "kind": "openai",
            "base_url": self._endpoint.base_url,
            "form": self._spec.form,
            "truth_model": self._spec.truth_model,
            "info_model": self._spec.info_model,
            "top_logprobs": self._top,
            "words": hashlib.sha256(json.dumps([COHERENCE, as_completion("")]).encode()).hexdigest()[:16],
        }

    def describe(self, traits: Sequence[Trait]) -> dict[str, Any]:
        """`identity`, and `agreement`, which asks for a score of every answer of the contrasts, once."""
        for trait in traits:
            if trait.sha256 not in self._agreement:
                self._agreement[trait.sha256] = agreement(self, trait)
        known = {trait.name: self._agreement[trait.sha256] for trait in traits}
        return self.identity(traits) | {"agreement": known}

    def usage(self) -> dict[str, Any]:
        """The endpoint's counts and `cost`: None without prices, or where a reply came without its counts."""
        return with_cost(self._endpoint.usage(), self._spec)


_NO_DIGITS = (
    "splits numbers into digits, and the server does not go on with a reply that was begun, so that the "
    "digits cannot be followed; use `form: completions`, or a model with whole numbers as tokens"
)


def _filled(prompt: str, exchange: Exchange) -> str:
    return prompt.format(question=exchange.question, answer=exchange.answer)


def _probabilities(reply: Reply) -> Top:
    """A server may round a log-probability to above 0, or give none for what it did not compute."""
    return [(token, math.exp(min(value, 0.0))) for token, value in reply.top if not math.isnan(value)]
