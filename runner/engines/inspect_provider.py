"""A model provider of Inspect (UK AISI's `inspect_ai`): `inspect eval TASK --model subvene/FOLDER_OR_REPO`.

Inspect finds it by the entry point that the package declares. Answers are those of `subvene serve` without
vLLM: samples that are asked at the same time are one batch, each equal to itself alone; the receipt stands in
the log, among the metadata of every output.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from subvene.runner.engines.admission import Wishes, parse
from subvene.runner.engines.in_process import Answers, InProcess, Sampling
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import SubveneError

_CARRIED_OUT = frozenset({"max_tokens", "temperature", "top_p", "seed", "num_choices", "stop_seqs"})
# What says how Inspect asks, and changes no answer.
_INSPECTS_OWN = frozenset(
    {"max_connections", "adaptive_connections", "max_retries", "timeout", "attempt_timeout", "cache", "batch"}
)
_DEFAULT_MAX_TOKENS = 2048
_ARTIFACT = "artifact"


class InspectProvider(ModelAPI):
    """An artifact as a model of Inspect's.

    Args:
        model_name: the artifact: its folder, or its repository on the Hub.
        base_url: refused: the model runs in this process.
        api_key: not used.
        config: Inspect's defaults for what it asks.
        **model_args: fields of the artifact's `model:` to replace (`-M device=cuda`); `strength`, one number
            in place of the declared strength, 0 for the untouched model.

    Raises:
        SubveneError: the artifact cannot be read, or is of another model.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 (Inspect's own signature)
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        if base_url is not None:
            raise SubveneError("base_url: a subvene model runs in this process; for a server, use openai-api")
        strength = model_args.pop("strength", None)
        m = IntervenedModel.from_pretrained(_source(model_name), **model_args)
        self.engine = InProcess({_ARTIFACT: m})
        self.wishes = _wishes(m, strength)

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer a conversation.

        Raises:
            SubveneError: it asks for what is not done here; nothing is left out.
        """
        if tools:
            raise SubveneError(f"tools: a subvene model calls none, found {', '.join(t.name for t in tools)}")
        begun = time.monotonic()
        ask = partial(
            self.engine.answer,
            [_message(message) for message in input],
            chat=self.engine.tokenizer.chat_template is not None,
            wishes=self.wishes,
            sampling=_sampling(config),
        )
        answers = await anyio.to_thread.run_sync(ask)
        return self._output(answers, time.monotonic() - begun)

    def _output(self, answers: Answers, seconds: float) -> ModelOutput:
        choices = [
            ChatCompletionChoice(
                message=ChatMessageAssistant(content=text, model=self.model_name, source="generate"),
                stop_reason="stop" if finished == "stop" else "max_tokens",
            )
            for text, finished in zip(answers.texts, answers.finished, strict=True)
        ]
        usage = ModelUsage(
            input_tokens=answers.prompt_tokens,
            output_tokens=answers.tokens,
            total_tokens=answers.prompt_tokens + answers.tokens,
        )
        return ModelOutput(
            model=self.model_name,
            choices=choices,
            usage=usage,
            time=seconds,
            metadata={"receipt": answers.receipt},
        )

    def max_tokens(self) -> int | None:
        """Of an answer, where Inspect does not say."""
        return _DEFAULT_MAX_TOKENS

    def max_connections(self) -> int:
        """Samples that are asked at one time, and so are batched."""
        return 32


def _source(name: str) -> str:
    """A folder or a repository: an absolute path comes as `subvene//abs/path`, with its slash."""
    return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name


def _wishes(m: IntervenedModel, strength: object) -> Wishes:
    if strength is None:
        return parse(_ARTIFACT)
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        raise SubveneError(f"strength: expected a number, found {strength!r}")
    return parse(f"{_ARTIFACT}={strength}") if strength else Wishes(artifacts=())


def _sampling(config: GenerateConfig) -> Sampling:
    asked = config.model_dump(exclude_none=True)
    if unknown := sorted(asked.keys() - _CARRIED_OUT - _INSPECTS_OWN):
        raise SubveneError(
            f"{', '.join(unknown)}: not done by a subvene model, which knows "
            f"{', '.join(sorted(_CARRIED_OUT))}"
        )
    return Sampling(
        max_tokens=config.max_tokens or _DEFAULT_MAX_TOKENS,
        temperature=1.0 if config.temperature is None else config.temperature,
        top_p=1.0 if config.top_p is None else config.top_p,
        seed=config.seed,
        n=config.num_choices or 1,
        stop=tuple(config.stop_seqs or ()),
    )


def _message(message: ChatMessage) -> dict[str, str]:
    if message.role == "tool":
        raise SubveneError("messages: a subvene model calls no tools, found the answer of one")
    if not isinstance(message.content, str) and any(part.type != "text" for part in message.content):
        raise SubveneError("messages: a subvene model reads text, found another content")
    return {"role": message.role, "content": message.text}


@modelapi(name="subvene")
def subvene() -> type[ModelAPI]:
    """What the entry point registers."""
    return InspectProvider
