"""vLLM as an engine for Python: prompts and what is done to them in, answers, scores and receipts out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from subvene.runner.data.span import Text
from subvene.runner.edits.not_finite import NotFiniteError
from subvene.runner.engines.catalogue import Reserve
from subvene.runner.engines.collecting import Collected
from subvene.runner.engines.errors import EngineError
from subvene.runner.engines.in_process import Answers, Sampling
from subvene.runner.engines.vllm import versions
from subvene.runner.engines.vllm.settings import KEY, Settings, digest

_RPC = "subvene_rpc"

Asked = Sequence[Mapping[str, Any] | str]
"""Artifacts that a request names: see `admission.parse`."""


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of a given response.

    Attributes:
        log_probs: of each of its tokens.
        receipt: what each intervention did.
    """

    log_probs: list[float]
    receipt: list[dict[str, Any]]


class VllmEngine:
    """A model in vLLM, and the artifacts that requests may name.

    Args:
        model: as vLLM takes it: a folder, or a name on the Hub.
        artifacts: name → folder.
        reserve: room for artifacts that come later, and for requests that name several.
        collect: `site[layer]`, where activations can be collected.
        options: any of `vllm.LLM`'s.

    Raises:
        EngineError: vLLM is not there, is another version, has not loaded the plugin, or is to be run in a
            way in which artifacts do not run.
        SubveneError: an artifact cannot be read, or is of another model.
    """

    def __init__(
        self,
        model: str,
        artifacts: Mapping[str, Path | str],
        *,
        reserve: Reserve | None = None,
        collect: Sequence[str] = (),
        **options: Any,
    ) -> None:
        check_active()
        import vllm

        folders = {name: str(folder) for name, folder in artifacts.items()}
        held = Settings(folders, reserve or Reserve(), tuple(collect))
        config = {**options.pop("additional_config", {}), KEY: held.to_config()}
        self.llm = vllm.LLM(model=model, additional_config=config, **options)
        self.base = model
        check_workers(self.llm)

    @property
    def artifacts(self) -> tuple[str, ...]:
        """Names of what is held."""
        return tuple(_front(self.llm).catalogue.held)

    def add(self, name: str, folder: Path | str) -> None:
        """Hold another artifact: see `add`."""
        add(self.llm, name, folder)

    def remove(self, name: str) -> None:
        """Hold an artifact no longer: see `remove`."""
        remove(self.llm, name)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        asked: Sequence[Asked | None],
        sampling: Sampling | Sequence[Sampling],
    ) -> list[Answers]:
        """Answer prompts, all at once, each with artifacts of its own.

        Args:
            prompts: tokens.
            asked: the artifacts of each prompt.
            sampling: how; one for all prompts, or one each.

        Raises:
            vllm.exceptions.VLLMValidationError: one asks for what cannot be done; nothing has run.
            NotSteeredError: one was not steered as declared.
            NotFiniteError: logits or what was done to one were not finite; `rows` names the prompts.
        """
        import vllm

        how = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        each = [
            vllm.SamplingParams(
                max_tokens=one.max_tokens,
                temperature=one.temperature,
                top_p=one.top_p,
                seed=one.seed,
                n=one.n,
                stop=list(one.stop),
                stop_token_ids=list(one.stop_token_ids),
                logprobs=0,  # of the tokens taken, which are not finite where the logits are not
                extra_args=_extra(wanted),
            )
            for one, wanted in zip(how, asked, strict=True)
        ]
        tokens = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._run(tokens, each)
        _check_finite(outputs)
        return [_answers(output) for output in outputs]

    def score(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], asked: Sequence[Asked | None]
    ) -> list[Scores]:
        """Log-probabilities of given responses, by vLLM's log-probabilities of a prompt.

        Args:
            pairs: tokens of each prompt and of the response to it.
            asked: the artifacts of each pair.

        Raises:
            NotSteeredError: one was not steered as declared.
        """
        import vllm

        tokens, each = [], []
        for (prompt, response), wishes in zip(pairs, asked, strict=True):
            tokens.append({"prompt_token_ids": [*prompt, *response]})
            extra = _extra(wishes, prompt_tokens=len(prompt))
            each.append(vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, extra_args=extra))
        outputs = self._run(tokens, each)
        return [_scores(output, len(prompt)) for output, (prompt, _) in zip(outputs, pairs, strict=True)]

    def activations(self, texts: Sequence[Text], sites: Sequence[str]) -> list[dict[str, Collected]]:
        """What the untouched model has at some sites, over the span of each text.

        Args:
            texts: tokens, and the span, which holds one at least.
            sites: `site[layer]`, of those that the engine was started to collect at.
        """
        import vllm

        each = [
            vllm.SamplingParams(
                temperature=0,
                max_tokens=1,
                detokenize=False,
                extra_args={
                    "subvene": {
                        "artifacts": [],
                        "collect": {"sites": list(sites), "start": text.start, "end": text.end},
                    }
                },
            )
            for text in texts
        ]
        outputs = self._run([{"prompt_token_ids": list(text.ids)} for text in texts], each)
        return [output.subvene.collected for output in outputs]

    def _run(self, tokens: Sequence[Any], params: Sequence[Any]) -> list[Any]:
        try:
            return list(self.llm.generate(tokens, params, use_tqdm=False))
        except NotFiniteError as error:
            steered = ((i, one.subvene) for i, one in enumerate(error.outputs))  # type: ignore[attr-defined]
            rows = {i: str(s.error) for i, s in steered if s and isinstance(s.error, NotFiniteError)}
            raise NotFiniteError(str(error), rows) from error

    def close(self) -> None:
        """End the engine and its processes."""
        import vllm.envs

        self.llm.llm_engine.engine_core.shutdown()
        if not vllm.envs.VLLM_ENABLE_V1_MULTIPROCESSING:  # what it has set up is this process's
            from vllm.distributed import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()


def check_active() -> None:
    """Refuse to go on where vLLM would pass over artifacts in silence.

    Raises:
        EngineError: vLLM is not there, is another version, or has not loaded the plugin.
    """
    versions.check()
    from subvene.runner.engines.vllm.plugin import is_active

    if not is_active():
        raise EngineError(
            "vLLM has not loaded subvene's plugin, and would pass over artifacts: VLLM_PLUGINS, if set, "
            "has to name `subvene`; if it does, vLLM's log says why it could not be loaded"
        )


def check_workers(llm: Any) -> None:
    """Hold what every worker has against what the front end has.

    Raises:
        EngineError: one has something else, or nothing.
    """
    catalogue = _front(llm).catalogue
    ranks = llm.collective_rpc(_RPC, args=("state",))
    if any(rank["digest"] != digest(catalogue) for rank in ranks):
        raise EngineError("a worker of vLLM does not hold the artifacts that its front end holds")
    sites = {site for rank in ranks for site in rank["sites"]}
    if missing := sorted(catalogue.rooms.keys() - sites):
        raise EngineError(f"no worker of vLLM edits {', '.join(missing)}")
    read = {site for rank in ranks for site in rank["read"]}
    if missing := sorted(set(_front(llm).collects) - read):
        raise EngineError(f"no worker of vLLM reads {', '.join(missing)}")


def add(llm: Any, name: str, folder: Path | str) -> None:
    """Hold another artifact in a running engine, for requests from now on.

    Raises:
        SubveneError: it cannot be read or run, or there is no room for it; nothing has changed.
    """
    front = _front(llm)
    front.add(name, str(folder))
    try:
        llm.collective_rpc(_RPC, args=("add", name, str(folder)))
        check_workers(llm)
    except Exception as error:
        front.catalogue.remove(name)
        raise EngineError(
            f"{name}: not every worker could take it ({error}); start the engine again"
        ) from error


def remove(llm: Any, name: str) -> None:
    """Hold an artifact no longer; its room is free.

    Raises:
        RequestError: a request is running with it.
        EngineError: none of that name is held.
    """
    front, states = _front(llm), llm.llm_engine.output_processor.request_states
    front.check_unused(name, (s.subvene for s in states.values() if s.subvene is not None))
    front.catalogue.remove(name)
    llm.collective_rpc(_RPC, args=("remove", name))


def _front(llm: Any) -> Any:
    if (front := llm.llm_engine.input_processor.subvene) is None:
        raise EngineError("this engine was started without artifacts (additional_config: subvene)")
    return front


def _extra(asked: Asked | None, **more: int) -> dict[str, Any] | None:
    return None if not asked else {"subvene": {"artifacts": list(asked), **more}}


def _receipt(output: Any) -> list[dict[str, Any]]:
    return [] if output.subvene is None else [asdict(one) for one in output.subvene.receipts]


def _answers(output: Any) -> Answers:
    return Answers(
        texts=[answer.text for answer in output.outputs],
        finished=[answer.finish_reason for answer in output.outputs],
        prompt_tokens=len(output.prompt_token_ids),
        tokens=sum(len(answer.token_ids) for answer in output.outputs),
        receipt=_receipt(output),
        ids=[_without_end(answer) for answer in output.outputs],
    )


def _check_finite(outputs: Sequence[Any]) -> None:
    rows = {
        i: "log-probabilities: not finite"
        for i, output in enumerate(outputs)
        for answer in output.outputs
        for token, at in zip(answer.token_ids, answer.logprobs, strict=True)
        if not math.isfinite(at[token].logprob)
    }
    if rows:
        raise NotFiniteError(f"log-probabilities of answers: not finite in {len(rows)} requests", rows)


def _without_end(answer: Any) -> list[int]:
    """The tokens of an answer. vLLM keeps the token that ended it; a text that did is in `stop_reason`."""
    ended = answer.finish_reason == "stop" and not isinstance(answer.stop_reason, str)
    return list(answer.token_ids)[: -1 if ended else None]


def _scores(output: Any, begins: int) -> Scores:
    ids, found = output.prompt_token_ids, output.prompt_logprobs
    return Scores([found[i][ids[i]].logprob for i in range(begins, len(ids))], _receipt(output))
