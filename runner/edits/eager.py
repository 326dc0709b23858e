"""Calls that run module by module, whatever `torch.compile` has made of the model before."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

_LOCK = threading.Lock()
_HELD = contextlib.ExitStack()
_holders = 0


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Inside, what went through `torch.compile` runs as it was written, and so with the hooks on its modules.

    Compiled code does not look for hooks that came after it: a compiled wrapper of a model, or a compiled
    function that calls it, would run without the edits. The setting is torch's own and the process's: code
    of other threads runs uncompiled meanwhile, with the same results.
    """
    global _holders
    with _LOCK:
        if not _holders:
            _HELD.enter_context(torch.compiler.set_stance("force_eager"))
        _holders += 1
    try:
        yield
    finally:
        with _LOCK:
            _holders -= 1
            if not _holders:
                _HELD.close()


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Inside, within `eagerly`, what goes through `torch.compile` is compiled after all."""
    with torch.compiler.set_stance("default"):
        yield
