"""A real OpenAI-compatible server on loopback, and a proxy before it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import loopback
import pytest
from checkout import TESTS

SERVE = TESTS / "support" / "serve_smollm2.py"


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of llama.cpp serving SmolLM2; the model's name there is `smollm2`."""
    process = subprocess.Popen(
        [sys.executable, str(SERVE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        url = process.stdout.readline().strip() if process.stdout else ""
        assert url.startswith("http://127.0.0.1:"), f"no server: {url!r}"
        yield url
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def _proxy(server: str) -> Iterator[loopback.Proxy]:
    with loopback.proxy_before(server) as proxy:
        yield proxy


@pytest.fixture
def proxy(_proxy: loopback.Proxy) -> loopback.Proxy:
    """The proxy before `server`, without faults and with its counts at 0."""
    _proxy.faults, _proxy.pause, _proxy.status, _proxy.message = 0.0, 0.0, 200, ""
    _proxy.keys.clear()
    _proxy.forget()
    return _proxy
