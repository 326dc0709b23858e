"""A running server as the engine of an experiment, known to hold what is declared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import openai
import torch

from subvene.runner.data.reasoning import answer_of
from subvene.runner.data.span import Text
from subvene.runner.edits.compile import place
from subvene.runner.edits.not_finite import NotFiniteError, check_finite
from subvene.runner.edits.receipt import NotSteeredError, Receipt
from subvene.runner.engines.batching import why_not_batched
from subvene.runner.engines.collecting import Collected
from subvene.runner.engines.errors import EngineError
from subvene.runner.engines.holdings import client_of, holdings
from subvene.runner.engines.wording import Held, held_for, means_of, receipt_of, together, wishes
from subvene.runner.files.json_value import Json
from subvene.runner.files.progress import track
from subvene.runner.intervened.acting import acting
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.rollouts import Rollout, Row
from subvene.runner.intervened.scoring import refuse_empty
from subvene.runner.models.generation import answer_ends
from subvene.runner.models.identity import files_sha256
from subvene.runner.models.loading import resolve
from subvene.runner.passes.elsewhere import SpanMeans
from subvene.specs import EngineSpec, ModelSpec

_AT_A_TIME = 32
_ERRORS = {error.__name__: error for error in (NotSteeredError, NotFiniteError)}
# vLLM's server takes what is left out here from the model's generation_config.
_NOTHING_ELSE = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
_One = TypeVar("_One")
_Given = TypeVar("_Given")


class Remote:
    """A server that holds the model of an experiment, found out when this is made.

    Args:
        spec: where it is.
        model: which model.
        plain: the same, untouched, as this process has it.
        hashes: of it, as units hold them (`model`, `text`).
        folder: where tensor files that specs name are looked for.

    Raises:
        EngineError: it does not answer, does not say what it holds, or holds another model.
    """

    def __init__(
        self,
        spec: EngineSpec,
        model: ModelSpec,
        plain: IntervenedModel,
        hashes: Mapping[str, Json],
        folder: Path,
    ) -> None:
        self._folder, self.url = folder, spec.words
        self._client = client_of(spec)
        self.held = holdings(spec)
        about = self.held.about
        self._is_vllm = about["engine"] == "vllm"
        if not self._is_vllm and (reason := why_not_batched(plain, [])) is not None:
            raise EngineError(
                f"engine: {self.url}: its answers would not be those of an experiment: {reason}; "
                "leave `engine` out"
            )
        # vLLM has the weights in another form: what tells its model is what it was read from.
        here = (
            _read_from(model, plain) if self._is_vllm else {name: hashes[name] for name in ("model", "text")}
        )
        if differ := [name for name, value in here.items() if about.get(name) != value]:
            raise EngineError(
                f"engine: {self.url} holds another model than `model:` declares (of other "
                f"{' and '.join(differ)}: weights, dtype, tokenizer or chat template); serve this one"
            )

    @property
    def identity(self) -> dict[str, Json]:
        """Its engine and versions."""
        return {"engine": {"server": self.held.about["engine"], "versions": self.held.about["versions"]}}

    def check(self, m: IntervenedModel) -> None:
        """Find out whether it holds what a model's interventions do."""
        self._held(m)

    def check_reads(self, sites: Sequence[str]) -> None:
        """Find out whether the server collects there."""
        if missing := sorted(set(sites) - set(self.held.about.get("collect", ()))):
            options = " ".join(f"--collect '{site}'" for site in missing)
            raise EngineError(
                f"engine: {self.url} does not collect activations at {', '.join(missing)}; start it "
                f"with {options}, or leave `engine` out"
            )

    def activations(self, site: str, layers: Sequence[int], texts: Sequence[Text], /) -> SpanMeans:
        """As `Engine.activations`."""
        places = [place(site, layer) for layer in layers]

        def ask(i: int, text: Text) -> dict[str, Collected]:
            collect = {"sites": places, "start": text.start, "end": text.end}
            answer = self._asked(
                i,
                prompt=list(text.ids),
                max_tokens=1,
                temperature=0,
                extra_body={"subvene": {"artifacts": [], "collect": collect}},
            )
            told = (answer.model_extra or {})["subvene"]["collected"]
            return {name: Collected.from_json(record) for name, record in told.items()}

        return means_of(_side_by_side(ask, texts, _AT_A_TIME, "activations"), layers, places)

    def close(self) -> None:
        """Leave the server as it is."""
        self._client.close()

    def _held(self, m: IntervenedModel) -> Held | None:
        if m.is_disabled:
            return None
        return held_for(m, self.held.artifacts, self._folder, self.url)

    def rollouts(
        self, m: IntervenedModel, rows: Sequence[Row], *, batch_size: int = 64, description: str = "responses"
    ) -> tuple[list[Rollout], list[Receipt]]:
        """As `Engine.rollouts`."""
        held = self._held(m)
        answered = _side_by_side(
            lambda i, row: self._answer(m, held, i, row), rows, min(_AT_A_TIME, batch_size), description
        )
        return [rollout for rollout, _ in answered], _told(receipt for _, receipt in answered)

    def log_probs(
        self,
        m: IntervenedModel,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        batch_size: int = 16,
        description: str = "scoring",
    ) -> tuple[torch.Tensor, list[Receipt]]:
        """As `Engine.log_probs`."""
        refuse_empty(pairs)
        held = self._held(m)
        scored = _side_by_side(
            lambda i, pair: self._score(m, held, i, pair), pairs, min(_AT_A_TIME, batch_size), description
        )
        totals = torch.tensor([total for total, _ in scored], dtype=torch.float64)
        check_finite(totals, "Σ log p", acting(m))
        return totals, _told(receipt for _, receipt in scored)

    def _answer(
        self, m: IntervenedModel, held: Held | None, i: int, row: Row
    ) -> tuple[Rollout, Receipt | None]:
        ends = answer_ends(m.model, m.tokenizer)
        answer = self._asked(
            i,
            prompt=list(row.prompt),
            max_tokens=row.max_new_tokens,
            temperature=row.temperature,
            top_p=row.top_p,
            seed=row.seed,
            stop=[] if row.stop is None else [row.stop],
            extra_body={
                "return_token_ids": True,
                "stop_token_ids": sorted(ends),
                "subvene": wishes(m, held, row.strengths),
            },
        )
        choice = answer.choices[0]
        tokens, has_ended = (choice.model_extra or {})["token_ids"], choice.finish_reason == "stop"
        if has_ended and tokens and tokens[-1] in ends:  # vLLM keeps the token that ended it
            tokens = tokens[:-1]
        start, text = answer_of(m.tokenizer, row.prompt, tokens)
        return Rollout(tuple(tokens), has_ended, start, text), _receipt(m, held, answer)

    def _score(
        self, m: IntervenedModel, held: Held | None, i: int, pair: tuple[Sequence[int], Sequence[int]]
    ) -> tuple[float, Receipt | None]:
        prompt, response = pair
        ids, asked = [*prompt, *response], wishes(m, held)
        answer = self._asked(
            i,
            prompt=ids,
            max_tokens=1,
            temperature=0,
            extra_body={
                "prompt_logprobs": 0,
                "subvene": asked and {"artifacts": asked, "prompt_tokens": len(prompt)},
            },
        )
        told = (answer.choices[0].model_extra or {})["prompt_logprobs"]
        total = sum(told[at][str(ids[at])]["logprob"] for at in range(len(prompt), len(ids)))
        return total, _receipt(m, held, answer)

    def _asked(self, i: int, *, extra_body: dict[str, Any], **request: Any) -> openai.types.Completion:
        """One request's answer; `i` is its row."""
        # A server that holds artifacts and is asked for none has to be asked for nothing.
        body = {key: value for key, value in extra_body.items() if value is not None}
        if self._is_vllm:
            body |= _NOTHING_ELSE
        try:
            return self._client.completions.create(model=self.held.base, extra_body=body, **request)
        except openai.APIStatusError as error:
            raise self._meant(error, i) from error
        except openai.OpenAIError as error:
            raise EngineError(f"engine: {self.url}: {error}") from error

    def _meant(self, error: openai.APIStatusError, i: int) -> Exception:
        """The error that a request would have been in this process."""
        body = error.body if isinstance(error.body, dict) else {}
        kind, said = _ERRORS.get(str(body.get("type"))), str(body.get("message", error))
        if kind is NotFiniteError:
            return NotFiniteError(said, {i: said})
        return EngineError(f"engine: {self.url}: {said}") if kind is None else kind(said)


def _read_from(model: ModelSpec, plain: IntervenedModel) -> dict[str, Json]:
    files = files_sha256(resolve(model), plain.model.config)
    return {"files": files, "dtype": str(plain.model.dtype).removeprefix("torch.")}


def _receipt(m: IntervenedModel, held: Held | None, answer: openai.types.Completion) -> Receipt | None:
    if held is None:
        return None
    return receipt_of(m, (answer.model_extra or {})["subvene"]["receipt"])


def _told(receipts: Iterable[Receipt | None]) -> list[Receipt]:
    return together([receipt for receipt in receipts if receipt is not None])


def _side_by_side(
    ask: Callable[[int, _Given], _One], given: Sequence[_Given], at_a_time: int, description: str
) -> list[_One]:
    """Requests, several at a time; the first error ends those that have not begun."""
    with ThreadPoolExecutor(at_a_time) as pool:
        asked = [pool.submit(ask, i, one) for i, one in enumerate(given)]
        try:
            return [one.result() for one in track(asked, description)]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
