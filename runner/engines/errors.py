"""What an engine says when it cannot do what is declared or asked for."""

from __future__ import annotations

from subvene.specs import SubveneError


class EngineError(SubveneError):
    """An engine cannot run what is declared, and does not run it otherwise."""


class RequestError(EngineError, ValueError):
    """A request asks for what cannot be done; nothing of it has been run."""
