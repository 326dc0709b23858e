"""A proxy on loopback that passes a real server's replies on, or fails as servers and networks do."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import random
import socket
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

FAULTS = ("drop", "cut", "delay", "busy", "broken")


class Quiet(http.server.BaseHTTPRequestHandler):
    """A handler that can leave in the middle, and writes nothing on standard error."""

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Proxy:
    """What the proxy does, and what it has seen; set the fields between runs.

    Attributes:
        upstream: the real server's URL.
        faults: the share of first tries that fail, and of second ones; a request fails three times at most.
        delay: seconds that a delayed reply takes, longer than the client's timeout.
        pause: seconds before every reply.
        status: reply to every request with this status, and `message`.
        passed: requests that were answered, by body.
        failed: faults by kind.
        keys: the Authorization headers that came.
        listings: how often the models were asked for.
    """

    upstream: str
    url: str = ""
    faults: float = 0.0
    delay: float = 4.0
    pause: float = 0.0
    status: int = 200
    message: str = ""
    passed: Counter[bytes] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)
    listings: int = 0
    _recorded: dict[tuple[str, bytes], tuple[int, bytes]] = field(default_factory=dict)
    _tries: Counter[bytes] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def forget(self) -> None:
        """Begin to count anew; the real server's replies stay recorded."""
        self.passed.clear()
        self.failed.clear()
        self._tries.clear()
        self.listings = 0

    def fault(self, body: bytes) -> str | None:
        """Which fault this request meets: the same one whatever the order in which threads come."""
        with self._lock:
            self._tries[body] += 1
            tries = self._tries[body]
        draw = random.Random(f"7 {tries} {body!r}")
        if tries > 3 or draw.random() >= self.faults:
            return None
        chosen = draw.choice(FAULTS)
        with self._lock:
            self.failed[chosen] += 1
        return chosen

    def real(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """The real server's reply, recorded: it batches what comes together, and then rounds differently."""
        with self._lock:
            known = self._recorded.get((path, body))
        if known is None:
            host = urllib.parse.urlsplit(self.upstream).netloc
            with contextlib.closing(http.client.HTTPConnection(host, timeout=120)) as connection:
                connection.request(method, path, body or None, {"Content-Type": "application/json"})
                response = connection.getresponse()
                known = response.status, response.read()
            with self._lock:
                known = self._recorded.setdefault((path, body), known)
        return known


def _handler(proxy: Proxy) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(Quiet):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            proxy.listings += 1
            self._pass_on(b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            fault = proxy.fault(body)
            if fault == "drop":
                self.hang_up()
            elif fault == "busy":
                self._send(429, _error("slow down"), {"Retry-After": "0.05"})
            elif fault == "broken":
                self._send(random.Random(body).choice((500, 503)), _error("broken"))
            elif fault == "cut":
                _, data = proxy.real("POST", self.path, body)
                self._send(200, data[: len(data) // 2], length=len(data))
                self.hang_up()
            elif fault == "delay":
                time.sleep(proxy.delay)
                with contextlib.suppress(OSError):  # the client has left
                    self._send(200, proxy.real("POST", self.path, body)[1])
            else:
                time.sleep(proxy.pause)
                self._pass_on(body)

        def _pass_on(self, body: bytes) -> None:
            proxy.keys.add(self.headers.get("Authorization", ""))
            if proxy.status != 200:
                self._send(proxy.status, _error(proxy.message))
                return
            status, data = proxy.real(self.command, self.path, body)
            if body:
                with proxy._lock:
                    proxy.passed[body] += 1
            with contextlib.suppress(OSError):  # a client that was killed
                self._send(status, data)

        def _send(
            self, status: int, data: bytes, headers: dict[str, str] | None = None, length: int | None = None
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data) if length is None else length))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    return Handler


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message}}).encode()


@contextlib.contextmanager
def serve(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server on a free port of 127.0.0.1 while the block runs; gives its URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def proxy_before(upstream: str) -> Iterator[Proxy]:
    """A proxy before a server while the block runs."""
    proxy = Proxy(upstream)
    with serve(_handler(proxy)) as url:
        proxy.url = url
        yield proxy


def free_port() -> int:
    """A port of 127.0.0.1 at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
