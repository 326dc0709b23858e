"""The part of OpenAI's protocol that is answered here; what else would change an answer is refused."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue

from subvene.runner.engines.admission import Wishes, parse
from subvene.runner.engines.collecting import CollectedRecord, told
from subvene.runner.engines.errors import RequestError
from subvene.runner.engines.fingerprints import Fingerprint, does
from subvene.runner.engines.in_process import Answers, InProcess, ModelHashes, Sampling
from subvene.runner.models.identity import versions

TokenId = Annotated[int, Field(ge=0, strict=True)]


class Request(BaseModel):
    """What both kinds of request have. `user`, `metadata` and `store` change no answer."""

    model_config = ConfigDict(extra="forbid")

    model: str
    temperature: Annotated[FiniteFloat, Field(ge=0)] | None = None
    top_p: Annotated[FiniteFloat, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    stream: bool | None = None
    subvene: Any = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None

    def sampling(self, max_tokens: int) -> Sampling:
        """How it is to be answered; the defaults are OpenAI's."""
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            n=self.n or 1,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
        )

    def wishes(self, engine: InProcess) -> Wishes:
        """What is to be done to it: by the model's name, or by `subvene`.

        Raises:
            RequestError: both, or neither a model nor an artifact of that name.
        """
        if self.model == engine.base:
            return Wishes(artifacts=()) if self.subvene is None else parse(self.subvene)
        if self.model.partition("=")[0] not in engine.artifacts:
            names = ", ".join([engine.base, *engine.artifacts])
            raise RequestError(f"no model is called {self.model!r}; there are: {names}")
        if self.subvene is not None:
            raise RequestError(f"`model` names an artifact already; with `subvene`, ask for {engine.base!r}")
        return parse(self.model)


class Message(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class Chat(Request):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def prompt(self) -> Any:
        """What is asked."""
        return [message.model_dump() for message in self.messages]

    @property
    def longest(self) -> int:
        """Tokens of the answer at most."""
        return self.max_completion_tokens or self.max_tokens or 256


class Completion(Request):
    """`POST /v1/completions`."""

    prompt: Annotated[str, Field(min_length=1)] | Annotated[list[TokenId], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    return_token_ids: bool | None = None
    prompt_logprobs: Literal[0] | None = None

    @property
    def longest(self) -> int:
        """Tokens of the answer at most."""
        return self.max_tokens or 16


class ModelRecord(TypedDict):
    """A model of `GET /v1/models`."""

    id: str
    object: Literal["model"]
    owned_by: str
    parent: str | None
    subvene: EngineRecord | Fingerprint


class EngineRecord(ModelHashes):
    """What answers, and by hash the model in it."""

    engine: str
    versions: Mapping[str, str]
    collect: list[str]


class ModelList(TypedDict):
    """`GET /v1/models`."""

    object: Literal["list"]
    data: list[ModelRecord]


class Head(TypedDict):
    """What every answer begins with."""

    id: str
    object: str
    created: int
    model: str


class Turn(TypedDict, total=False):
    """A message, or what a piece adds to one."""

    role: Literal["assistant"]
    content: str


class Choice(TypedDict):
    """One answer of several, or a piece of one; `token_ids` and `prompt_logprobs` are vLLM's."""

    index: int
    finish_reason: str | None
    logprobs: NotRequired[None]
    text: NotRequired[str]
    message: NotRequired[Turn]
    delta: NotRequired[Turn]
    token_ids: NotRequired[list[int]]
    prompt_logprobs: NotRequired[list[dict[str, LogProb] | None]]


class LogProb(TypedDict):
    """Of a token."""

    logprob: float


class Receipts(TypedDict):
    """What every intervention did."""

    receipt: list[dict[str, JsonValue]]
    collected: NotRequired[dict[str, CollectedRecord]]


class Piece(Head):
    """One piece of a streamed answer."""

    choices: list[Choice]
    subvene: NotRequired[Receipts]


class Usage(TypedDict):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Whole(Head):
    """The answer in one piece."""

    choices: list[Choice]
    usage: Usage
    subvene: Receipts


def models(engine: InProcess) -> ModelList:
    """`GET /v1/models`: the model itself, and every artifact as one, with the hashes of what they are."""
    base: EngineRecord = {
        "engine": "transformers",
        "versions": versions(),
        "collect": list(engine.collects),
        **engine.fingerprint,
    }
    about: dict[str, EngineRecord | Fingerprint] = {engine.base: base}
    about |= {name: does(m.spec, m.tensors) for name, m in engine.artifacts.items()}
    rows: list[ModelRecord] = [
        {
            "id": name,
            "object": "model",
            "owned_by": "subvene",
            "parent": None if name == engine.base else engine.base,
            "subvene": hashes,
        }
        for name, hashes in about.items()
    ]
    return {"object": "list", "data": rows}


def head(request: Request, *, chunk: bool = False) -> Head:
    """What every answer begins with."""
    is_chat = isinstance(request, Chat)
    name = ("chat.completion" + (".chunk" if chunk else "")) if is_chat else "text_completion"
    prefix = "chatcmpl" if is_chat else "cmpl"
    identity = f"{prefix}-{uuid.uuid4().hex}"
    return {"id": identity, "object": name, "created": int(time.time()), "model": request.model}


def whole(request: Request, answers: Answers) -> Whole:
    """The answer in one piece, with the receipt."""
    choices: list[Choice] = []
    for i, (text, finished) in enumerate(zip(answers.texts, answers.finished, strict=True)):
        choice: Choice = {"index": i, "finish_reason": finished, "logprobs": None}
        if isinstance(request, Chat):
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        if isinstance(request, Completion) and request.return_token_ids:
            choice["token_ids"] = answers.ids[i]
        if answers.log_probs is not None:
            each: list[dict[str, LogProb]] = [
                {str(token): {"logprob": value}} for token, value in answers.log_probs
            ]
            choice["prompt_logprobs"] = [None, *each]
        choices.append(choice)
    usage: Usage = {
        "prompt_tokens": answers.prompt_tokens,
        "completion_tokens": answers.tokens,
        "total_tokens": answers.prompt_tokens + answers.tokens,
    }
    receipts: Receipts = {"receipt": answers.receipt}
    if answers.collected is not None:
        receipts["collected"] = told(answers.collected)
    return {**head(request), "choices": choices, "usage": usage, "subvene": receipts}


def piece(request: Request, begun: Head, text: str, finished: str | None = None) -> Piece:
    """One piece of a streamed answer."""
    choice: Choice = {"index": 0, "finish_reason": finished}
    if isinstance(request, Chat):
        choice["delta"] = {"role": "assistant", "content": text} if finished is None else {}
    else:
        choice["text"] = text
    return {**begun, "choices": [choice]}
