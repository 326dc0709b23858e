"""A browser's page that complains of nothing and asks nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_page(chromium: Any, own: str, *, timeout: float, **look: Any) -> Iterator[Any]:
    """A new page; at the end it must have raised nothing, warned of nothing and asked for nothing elsewhere.

    Args:
        chromium: a browser of playwright.
        own: how an address begins that it may ask for.
        timeout: milliseconds that anything may take.
        look: options of the browser's context.
    """
    context = chromium.new_context(**look)
    page = context.new_page()
    page.set_default_timeout(timeout)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    allowed = (own, "data:", "blob:")
    page.on("request", lambda asked: None if asked.url.startswith(allowed) else wrong.append(asked.url))
    yield page
    context.close()
    assert wrong == []
