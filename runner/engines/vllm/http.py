"""vLLM's OpenAI-compatible server with artifacts as models: an ASGI middleware (`--middleware`), no fork.

What a request says of artifacts (its `model`, or its field `subvene`) is handed to vLLM as `vllm_xargs`,
which its admission reads; what came of it is put into the answer's field `subvene`.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypedDict

from pydantic import JsonValue

from subvene.runner.edits.not_finite import NotFiniteError
from subvene.runner.edits.receipt import NotSteeredError
from subvene.runner.engines.errors import RequestError
from subvene.runner.engines.plan import ASKED, TAG
from subvene.runner.engines.vllm.front import Front, Steering

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

STEERED = ("/v1/chat/completions", "/v1/completions")
MODELS = "/v1/models"
UNSTEERED = 422


class ErrorRecord(TypedDict):
    """An error as OpenAI's protocol says it."""

    message: str
    type: str
    code: int


class Artifacts:
    """The middleware.

    Args:
        app: vLLM's application, its check of keys included.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer a call."""
        front = _front(scope) if scope["type"] == "http" else None
        if front is None:
            await self.app(scope, receive, send)
        elif scope["method"] == "GET" and scope["path"] == MODELS:
            await self._models(front, scope, receive, send)
        elif scope["method"] == "POST" and scope["path"].startswith("/v1/"):
            await self._post(front, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _models(self, front: Front, scope: Any, receive: Receive, send: Send) -> None:
        model = scope["app"].state.engine_client.model_config
        about = await asyncio.to_thread(front.about, model.model, str(model.dtype))

        def listed(document: Any) -> Any:
            base, *others = document["data"]
            held = [
                base | {"id": name, "parent": base["id"], "owned_by": "subvene", ASKED: hashes}
                for name, hashes in about.artifacts.items()
            ]
            return document | {"data": [base | {ASKED: about.model}, *others, *held]}

        await self.app(
            scope, receive, Whole(send, lambda status, d: (status, listed(d) if status == 200 else d))
        )

    async def _post(self, front: Front, scope: Any, receive: Receive, send: Send) -> None:
        raw = await _body(receive)
        try:
            document = json.loads(raw)
        except ValueError:
            document = None
        if not isinstance(document, dict) or not _names_artifacts(document, front):
            await self.app(scope, _again(raw), send)
            return
        tag, name = uuid.uuid4().hex, document.get("model")
        try:
            raw = json.dumps(_handed_on(document, scope, front, tag)).encode()
        except RequestError as error:
            await _refuse(send, 400, str(error), "BadRequestError")
            return
        front.tagged[tag] = []
        answer = Answer(send, front.tagged[tag], name)
        try:
            await self.app(_with_length(scope, len(raw)), _again(raw), answer)
        except (NotSteeredError, NotFiniteError) as error:
            # Past vLLM's own handlers, which stand before this one; nothing has been sent.
            await _refuse(send, UNSTEERED, str(error), type(error).__name__)
        finally:
            front.tagged.pop(tag, None)


class Whole:
    """Sends an answer in one piece, changed.

    Args:
        send: where to.
        change: is given the status and the document, and gives both.
    """

    def __init__(self, send: Send, change: Callable[[int, Any], tuple[int, Any]]) -> None:
        self._send, self._change = send, change
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        """Take one message."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body") or self._start is None:
            return
        start, body = self._start, self._body
        try:
            status, document = self._change(start["status"], json.loads(body))
            body = json.dumps(document).encode()
        except ValueError:  # no JSON: a plain text of vLLM's
            status = start["status"]
        headers = [(k, v) for k, v in start["headers"] if k.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self._send({**start, "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


class Answer:
    """Sends an answer, whole or streamed, with its receipts.

    Args:
        send: where to.
        steerings: what is done to the requests that vLLM made of it.
        name: the model's name in the request.
    """

    def __init__(self, send: Send, steerings: list[Steering], name: Any) -> None:
        self._send, self._steerings, self._name = send, steerings, name
        self._whole: Whole | None = None
        self._pending = b""
        self._is_told = False

    async def __call__(self, message: Message) -> None:
        """Take one message."""
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            if not kind.startswith(b"text/event-stream"):
                self._whole = Whole(self._send, self._finished)
        if self._whole is not None:
            await self._whole(message)
        elif message["type"] == "http.response.body":
            await self._send({**message, "body": self._events(message.get("body", b""), message)})
        else:
            await self._send(message)

    def _finished(self, status: int, document: Any) -> tuple[int, Any]:
        if (error := self._error()) is not None:
            return UNSTEERED, {"error": error}
        if status != 200:
            return status, document
        return status, document | {"model": self._name, ASKED: self._receipts()}

    def _events(self, body: bytes, message: Message) -> bytes:
        *events, self._pending = (self._pending + body).split(b"\n\n")
        if not message.get("more_body"):
            events, self._pending = [*events, self._pending], b""
        return b"".join(self._event(event) + b"\n\n" for event in events if event)

    def _event(self, event: bytes) -> bytes:
        if not event.startswith(b"data: {"):
            return event
        document = json.loads(event.removeprefix(b"data: "))
        if "error" in document:
            document["error"] = self._error() or document["error"]
        else:
            document["model"] = self._name
            is_last = any(choice.get("finish_reason") for choice in document.get("choices", ()))
            if is_last and not self._is_told and all(one.receipts is not None for one in self._steerings):
                document[ASKED], self._is_told = self._receipts(), True
        return b"data: " + json.dumps(document).encode()

    def _receipts(self) -> dict[str, Any]:
        said = [one.to_dict() for one in self._steerings]
        return said[0] if len(said) == 1 else {"receipts": [one["receipt"] for one in said]}

    def _error(self) -> ErrorRecord | None:
        for one in self._steerings:
            if one.error is not None:
                return {"message": str(one.error), "type": type(one.error).__name__, "code": UNSTEERED}
        return None


def _front(scope: Any) -> Front | None:
    client = getattr(scope["app"].state, "engine_client", None)
    return None if client is None else client.input_processor.subvene


def _names_artifacts(document: Mapping[str, JsonValue], front: Front) -> bool:
    return ASKED in document or _artifact(document, front) is not None


def _artifact(document: Mapping[str, JsonValue], front: Front) -> str | None:
    name = document.get("model")
    return name if isinstance(name, str) and name.partition("=")[0] in front.catalogue.held else None


def _handed_on(document: Mapping[str, JsonValue], scope: Any, front: Front, tag: str) -> dict[str, JsonValue]:
    """The request as vLLM is to get it.

    Raises:
        RequestError: vLLM would pass over what is asked for.
    """
    if scope["path"] not in STEERED:
        raise RequestError(f"{scope['path']} cannot be steered; {' and '.join(STEERED)} can")
    if document.get("use_beam_search"):
        raise RequestError("use_beam_search: vLLM's beam search passes over a request's artifacts")
    named = _artifact(document, front)
    if named is not None and ASKED in document:
        raise RequestError("`model` names an artifact already; with `subvene`, ask for the model itself")
    rest = {key: value for key, value in document.items() if key != ASKED}
    asked = document[ASKED] if named is None else named
    if named is not None:
        rest["model"] = scope["app"].state.openai_serving_models.base_model_paths[0].name
    # vLLM takes scalars there, and lists of them.
    said = asked if isinstance(asked, str) else json.dumps(asked)
    return rest | {"vllm_xargs": {**_extra(document), ASKED: said, TAG: tag}}


def _extra(document: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    extra = document.get("vllm_xargs") or {}
    if not isinstance(extra, dict):
        raise RequestError(f"vllm_xargs: expected an object, found {extra!r:.80}")
    return extra


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _again(body: bytes) -> Receive:
    """What gives a body, and then waits for the client to leave, as servers do."""
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _with_length(scope: Any, length: int) -> Any:
    headers = [(k, v) for k, v in scope["headers"] if k.lower() != b"content-length"]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


async def _refuse(send: Send, status: int, message: str, kind: str) -> None:
    body = json.dumps({"error": {"message": message, "type": kind, "code": status}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
