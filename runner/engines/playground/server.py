"""The server of `subvene ui`: that of `subvene serve`, and a page."""

from __future__ import annotations

import functools
import http.server
import threading
import urllib.parse
from collections.abc import Mapping
from http import HTTPStatus
from importlib.resources import files
from typing import TypedDict

from pydantic import JsonValue

from subvene.interventions.positions import plain_positions
from subvene.runner.edits.compile import entry_name
from subvene.runner.engines.http import Handler
from subvene.runner.engines.http import server as plain_server
from subvene.runner.engines.in_process import InProcess
from subvene.runner.engines.playground.answers import answer
from subvene.runner.engines.playground.screen import Screen, Shown, exported
from subvene.runner.files.printable import on_line
from subvene.runner.intervened.model import IntervenedModel

_PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_OWN = ("127.0.0.1", "localhost", "[::1]")
# The page runs its own script and nothing else: whatever a model writes stays text, and nothing leaves.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Slider(TypedDict):
    """An intervention, as the page shows it."""

    name: str
    kind: str
    where: list[str]
    positions: JsonValue
    strength: float
    reach: float


class Card(TypedDict):
    """An artifact, as the page shows it."""

    name: str
    interventions: list[Slider]


class Contents(TypedDict):
    """What there is to play with."""

    model: str
    artifacts: list[Card]


def server(
    engine: InProcess, shown: Mapping[str, Shown], host: str, port: int, api_key: str | None = None
) -> http.server.ThreadingHTTPServer:
    """A server that listens; `serve_forever` answers.

    Raises:
        EngineError: it would listen to other machines without a key.
        OSError: the address cannot be had.
    """
    kind = type("Playground", (_Playground,), {"shown": dict(shown)})
    return plain_server(engine, host, port, api_key, kind=kind)


class _Playground(Handler):
    shown: Mapping[str, Shown]

    def do_GET(self) -> None:
        """The page, which holds nothing secret, and what there is to play with."""
        path = urllib.parse.urlsplit(self.path).path
        if path in _PAGE:
            if self._is_meant():
                name, kind = _PAGE[path]
                self.send_bytes(HTTPStatus.OK, _page(name), kind, _HEADERS)
        elif path == "/playground":
            if self.is_let_in():
                self.send(HTTPStatus.OK, _contents(self.engine, self.shown))
        else:
            super().do_GET()

    def answered(self, path: str) -> bool:
        """Also the answers of a screen, and the screen as YAML."""
        if path == "/playground/answers":
            screen, telling = Screen.model_validate(self.body()), threading.Lock()

            def tell(event: Mapping[str, object]) -> None:
                with telling:
                    self.event(event)

            answer(self.engine, screen, self.shown, tell)
            tell({"end": True})
        elif path == "/playground/export":
            screen = Screen.model_validate(self.body())
            self.send(HTTPStatus.OK, {"yaml": exported(screen, self.shown)})
        else:
            return super().answered(path)
        return True

    def is_let_in(self) -> bool:
        """Also whether it is this page that asks."""
        return self._is_meant() and super().is_let_in()

    def _is_meant(self) -> bool:
        """Whether the client means this server.

        Without a key, any page that is open in a browser could ask in its user's name: from its own origin,
        or by a name of its own that it lets mean this machine.
        """
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        foreign = origin is not None and urllib.parse.urlsplit(origin).netloc != host
        named = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if foreign or (self.api_key is None and named not in _OWN):
            self.refuse(HTTPStatus.FORBIDDEN, "asked by another page than this server's", "ForbiddenError")
            return False
        return True


@functools.cache
def _page(name: str) -> bytes:
    return files(__package__).joinpath(name).read_bytes()


def _contents(engine: InProcess, shown: Mapping[str, Shown]) -> Contents:
    return {
        "model": on_line(engine.base),
        "artifacts": [{"name": name, "interventions": _sliders(one.m)} for name, one in shown.items()],
    }


def _sliders(m: IntervenedModel) -> list[Slider]:
    found: list[Slider] = []
    for i, (declared, entry) in enumerate(zip(m.spec.interventions, m.intervenable.entries, strict=True)):
        strength = declared.strength
        value = float(strength[0] if isinstance(strength, tuple) else strength)
        found.append(
            {
                "name": entry_name(m.spec, i),
                "kind": declared.kind,
                "where": list(entry.sites),
                "positions": plain_positions(declared.positions),
                "strength": value,
                "reach": 2 * abs(value) or 1.0,
            }
        )
    return found
