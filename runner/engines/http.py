"""The HTTP server of `subvene serve` without vLLM: the standard library's, a thread a connection."""

from __future__ import annotations

import hmac
import http.server
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError

from subvene.runner.edits.not_finite import NotFiniteError
from subvene.runner.edits.receipt import NotSteeredError
from subvene.runner.engines import protocol
from subvene.runner.engines.errors import EngineError, RequestError
from subvene.runner.engines.in_process import InProcess
from subvene.specs import SubveneError

LARGEST = 8 * 2**20
"""Bytes of a request's body."""
_REQUESTS: dict[str, type[protocol.Chat] | type[protocol.Completion]] = {
    "/v1/chat/completions": protocol.Chat,
    "/v1/completions": protocol.Completion,
}
_LOOPBACK = ("127.0.0.1", "localhost")


def server(
    engine: InProcess,
    host: str,
    port: int,
    api_key: str | None = None,
    *,
    kind: type[Handler] | None = None,
) -> http.server.ThreadingHTTPServer:
    """A server that listens; `serve_forever` answers.

    Args:
        engine: the model and its artifacts.
        host: address to listen at.
        port: port; 0 takes a free one.
        api_key: what clients have to give.
        kind: what answers, where it answers at more paths than this file does.

    Raises:
        EngineError: it would listen to other machines without a key.
        OSError: the address cannot be had.
    """
    if host not in _LOOPBACK and not api_key:
        raise EngineError(
            f"--host {host}: other machines could use it; give --api-key or SUBVENE_API_KEY too"
        )

    own = type("Own", (kind or Handler,), {"engine": engine, "api_key": api_key})
    made = http.server.ThreadingHTTPServer((host, port), own)
    made.daemon_threads = True
    return made


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers at the paths of OpenAI's protocol that `protocol` has.

    Attributes:
        engine: the model and its artifacts.
        api_key: what clients have to give; None: nothing.
    """

    engine: InProcess
    api_key: str | None
    protocol_version = "HTTP/1.1"
    _is_streaming = False

    def do_GET(self) -> None:
        """Health and the list of models."""
        if self.path == "/health":
            self.send(HTTPStatus.OK, {"status": "ok"})
        elif self.is_let_in():
            if self.path == "/v1/models":
                self.send(HTTPStatus.OK, protocol.models(self.engine))
            else:
                self.refuse(HTTPStatus.NOT_FOUND, f"no such path: {self.path}", "NotFoundError")

    def do_POST(self) -> None:
        """Answer a request, or say why not."""
        # What is not read of a body would be taken for the next request.
        self.close_connection = True
        if not self.is_let_in():
            return
        try:
            if not self.answered(self.path):
                self.refuse(HTTPStatus.NOT_FOUND, f"no such path: {self.path}", "NotFoundError")
        except ValidationError as error:
            words = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            self.refuse(HTTPStatus.BAD_REQUEST, words, "BadRequestError")
        except (NotSteeredError, NotFiniteError) as error:
            self.refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error), type(error).__name__)
        except SubveneError as error:
            self.refuse(HTTPStatus.BAD_REQUEST, str(error), "BadRequestError")
        except ConnectionError:
            return  # the client has left
        except Exception as error:
            self.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}", "InternalError")
            raise

    def answered(self, path: str) -> bool:
        """Answer what was posted; whether there is such a path."""
        if (kind := _REQUESTS.get(path)) is None:
            return False
        self._answer(kind.model_validate(self.body()))
        return True

    def _answer(self, request: protocol.Chat | protocol.Completion) -> None:
        wishes, sampling = request.wishes(self.engine), request.sampling(request.longest)
        reads = isinstance(request, protocol.Completion) and wishes.collect is not None
        scores = isinstance(request, protocol.Completion) and request.prompt_logprobs is not None
        if reads or scores:
            what = "subvene.collect" if reads else "prompt_logprobs"
            if request.stream or sampling.n > 1 or sampling.max_tokens > 1 or sampling.stop:
                raise RequestError(f"{what}: with `max_tokens`: 1, and without stream, n or stop")
            if reads and scores:
                raise RequestError("subvene.collect: not beside prompt_logprobs; ask for one after the other")
            answers = (self.engine.collect if reads else self.engine.score)(request.prompt, wishes)
            self.send(HTTPStatus.OK, protocol.whole(request, answers))
            return
        options: dict[str, Any] = {"chat": isinstance(request, protocol.Chat), "wishes": wishes}
        if not request.stream:
            answers = self.engine.answer(request.prompt, sampling=sampling, **options)
            self.send(HTTPStatus.OK, protocol.whole(request, answers))
            return
        if sampling.n > 1 or sampling.stop:
            raise RequestError("stream: this engine streams one answer (`n`: 1), and without `stop`")
        if isinstance(request, protocol.Completion) and request.return_token_ids:
            raise RequestError("return_token_ids: not in a stream")
        begun = protocol.head(request, chunk=True)
        answers = self.engine.answer(
            request.prompt,
            sampling=sampling,
            write=lambda text: self.event(protocol.piece(request, begun, text)),
            **options,
        )
        last = protocol.piece(request, begun, "", answers.finished[0])
        last["subvene"] = {"receipt": answers.receipt}
        self.event(last)
        self.wfile.write(b"data: [DONE]\n\n")

    def body(self) -> Any:
        """What was posted, JSON.

        Raises:
            RequestError: it is none, or too large.
        """
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST:
            raise RequestError(f"expected a Content-Length of at most {LARGEST} bytes, found {length!r:.20}")
        try:
            return json.loads(self.rfile.read(int(length)))
        except ValueError as error:
            raise RequestError(f"the body is no JSON ({error})") from error

    def is_let_in(self) -> bool:
        """Whether the client gave the key, if there is one; refuses it otherwise."""
        given = self.headers.get("Authorization", "").encode()
        if self.api_key is None or hmac.compare_digest(given, f"Bearer {self.api_key}".encode()):
            return True
        self.refuse(HTTPStatus.UNAUTHORIZED, "expected `Authorization: Bearer KEY`", "AuthenticationError")
        return False

    def refuse(self, status: HTTPStatus, message: str, kind: str) -> None:
        """Send an error; in a stream, as its last event."""
        error = {"error": {"message": message, "type": kind, "code": int(status)}}
        if self._is_streaming:
            self.event(error)
        else:
            self.send(status, error)

    def send(self, status: HTTPStatus, document: Mapping[str, object]) -> None:
        """Send JSON."""
        self.send_bytes(status, json.dumps(document).encode(), "application/json")

    def send_bytes(
        self, status: HTTPStatus, data: bytes, kind: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a whole answer of some media type."""
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def event(self, document: Mapping[str, object]) -> None:
        """Send a piece of a stream, which begins with the first."""
        if not self._is_streaming:
            self._is_streaming = True
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
        self.wfile.write(f"data: {json.dumps(document)}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error: prompts are nobody's business."""
