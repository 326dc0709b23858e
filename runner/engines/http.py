"""The HTTP server of `subvene serve` without vLLM: the standard library's, a thread a connection."""

from __future__ import annotations

import hmac
import http.server
import json
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError

from subvene.runner.edits.not_finite import NotFiniteError
from subvene.runner.edits.receipt import NotSteeredError
from subvene.runner.engines import protocol
from subvene.runner.engines.errors import EngineError, RequestError
from subvene.runner.engines.in_process import InProcess
from subvene.runner.files.json_value import Json
from subvene.specs import SubveneError

LARGEST = 8 * 2**20
"""Bytes of a request's body."""
_REQUESTS: dict[str, type[protocol.Chat] | type[protocol.Completion]] = {
    "/v1/chat/completions": protocol.Chat,
    "/v1/completions": protocol.Completion,
}
_LOOPBACK = ("127.0.0.1", "localhost")


def server(
    engine: InProcess, host: str, port: int, api_key: str | None = None
) -> http.server.ThreadingHTTPServer:
    """A server that listens; `serve_forever` answers.

    Raises:
        EngineError: it would listen to other machines without a key.
        OSError: the address cannot be had.
    """
    if host not in _LOOPBACK and not api_key:
        raise EngineError(
            f"--host {host}: other machines could use it; give --api-key or SUBVENE_API_KEY too"
        )

    class Handler(_Handler):
        pass

    Handler.engine, Handler.api_key = engine, api_key
    made = http.server.ThreadingHTTPServer((host, port), Handler)
    made.daemon_threads = True
    return made


class _Handler(http.server.BaseHTTPRequestHandler):
    engine: InProcess
    api_key: str | None
    protocol_version = "HTTP/1.1"
    _is_streaming = False

    def do_GET(self) -> None:
        """Health and the list of models."""
        if self.path == "/health":
            self._send(HTTPStatus.OK, {"status": "ok"})
        elif self._is_let_in():
            if self.path == "/v1/models":
                self._send(HTTPStatus.OK, protocol.models(self.engine))
            else:
                self._refuse(HTTPStatus.NOT_FOUND, f"no such path: {self.path}", "NotFoundError")

    def do_POST(self) -> None:
        """Answer a request, or say why not."""
        # What is not read of a body would be taken for the next request.
        self.close_connection = True
        if not self._is_let_in():
            return
        if self.path not in _REQUESTS:
            self._refuse(HTTPStatus.NOT_FOUND, f"no such path: {self.path}", "NotFoundError")
            return
        try:
            self._answer(_REQUESTS[self.path].model_validate(self._body()))
        except ValidationError as error:
            words = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            self._refuse(HTTPStatus.BAD_REQUEST, words, "BadRequestError")
        except (NotSteeredError, NotFiniteError) as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error), type(error).__name__)
        except SubveneError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error), "BadRequestError")
        except ConnectionError:
            return  # the client has left
        except Exception as error:
            self._refuse(
                HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}", "InternalError"
            )
            raise

    def _answer(self, request: protocol.Chat | protocol.Completion) -> None:
        wishes, sampling = request.wishes(self.engine), request.sampling(request.longest)
        if isinstance(request, protocol.Completion) and request.prompt_logprobs is not None:
            if request.stream or sampling.n > 1 or sampling.max_tokens > 1 or sampling.stop:
                raise RequestError("prompt_logprobs: with `max_tokens`: 1, and without stream, n or stop")
            answers = self.engine.score(request.prompt, wishes)
            self._send(HTTPStatus.OK, protocol.whole(request, answers))
            return
        options: dict[str, Any] = {"chat": isinstance(request, protocol.Chat), "wishes": wishes}
        if not request.stream:
            answers = self.engine.answer(request.prompt, sampling=sampling, **options)
            self._send(HTTPStatus.OK, protocol.whole(request, answers))
            return
        if sampling.n > 1 or sampling.stop:
            raise RequestError("stream: this engine streams one answer (`n`: 1), and without `stop`")
        if isinstance(request, protocol.Completion) and request.return_token_ids:
            raise RequestError("return_token_ids: not in a stream")
        begun = protocol.head(request, chunk=True)
        answers = self.engine.answer(
            request.prompt,
            sampling=sampling,
            write=lambda text: self._event(protocol.piece(request, begun, text)),
            **options,
        )
        last = protocol.piece(request, begun, "", answers.finished[0])
        last["subvene"] = {"receipt": answers.receipt}
        self._event(last)
        self.wfile.write(b"data: [DONE]\n\n")

    def _body(self) -> Any:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST:
            raise RequestError(f"expected a Content-Length of at most {LARGEST} bytes, found {length!r:.20}")
        try:
            return json.loads(self.rfile.read(int(length)))
        except ValueError as error:
            raise RequestError(f"the body is no JSON ({error})") from error

    def _is_let_in(self) -> bool:
        given = self.headers.get("Authorization", "").encode()
        if self.api_key is None or hmac.compare_digest(given, f"Bearer {self.api_key}".encode()):
            return True
        self._refuse(HTTPStatus.UNAUTHORIZED, "expected `Authorization: Bearer KEY`", "AuthenticationError")
        return False

    def _refuse(self, status: HTTPStatus, message: str, kind: str) -> None:
        error: Json = {"error": {"message": message, "type": kind, "code": int(status)}}
        if self._is_streaming:
            self._event(error)
        else:
            self._send(status, error)

    def _send(self, status: HTTPStatus, document: Json) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def _event(self, document: Json) -> None:
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
