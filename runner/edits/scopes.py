"""Who may edit a model's forward calls here and now: runs, and what is exempt from them, per thread or task.

Hooks stand on modules, which every thread and every `IntervenedModel` of that base model share; a hook acts
only where the run it belongs to is the innermost scope of its base. Scopes live in a context variable: a
thread begins without any, and an asyncio task has those in which it was made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from subvene.specs import SubveneError

_SCOPES: ContextVar[tuple[Scope, ...]] = ContextVar("subvene_scopes", default=())


class ConcurrentRunError(SubveneError, RuntimeError):
    """Two runs on one base model that cannot be kept apart."""


@dataclass(eq=False)
class Scope:
    """A stretch of code during which calls of `base` belong to somebody.

    Attributes:
        base: the model that is called.
        owner: the `IntervenableModel` whose run this is, or which asked for the untouched model; None: a
            callback of a run.
        is_run: whether calls are edited by `owner`; else they are nobody's, and no run reaches into it.
        is_driven: whether somebody else makes the calls (`attached`).
        is_open: whether the block is still being run; a task that was made inside keeps the scope longer.
        compiles: makes its calls that come through `torch.compile`, given (what compiles, args, kwargs);
            None: they run uncompiled.
    """

    base: torch.nn.Module
    owner: Any
    is_run: bool
    is_driven: bool = False
    is_open: bool = True
    compiles: Callable[[Any, Any, Any], Any] | None = None


@contextlib.contextmanager
def entered(scope: Scope) -> Iterator[Scope]:
    """Make `scope` the innermost one of this thread or task."""
    _SCOPES.set((*_SCOPES.get(), scope))
    try:
        yield scope
    finally:
        scope.is_open = False
        # By identity: scopes that were entered by hand may be left in another order.
        _SCOPES.set(tuple(other for other in _SCOPES.get() if other is not scope))


def plain(base: torch.nn.Module) -> contextlib.AbstractContextManager[Scope]:
    """Calls of `base` inside are nobody's: the model as it was loaded."""
    return entered(Scope(base, None, is_run=False))


def innermost(base: torch.nn.Module) -> Scope | None:
    """The scope that calls of `base` belong to here."""
    return next((scope for scope in reversed(_SCOPES.get()) if scope.base is base and scope.is_open), None)


def is_exempt(owner: Any) -> bool:
    """Whether `owner` asked for the untouched model here, however far out."""
    return any(not scope.is_run and scope.owner is owner and scope.is_open for scope in _SCOPES.get())


def refuse_nested(base: torch.nn.Module, owner: Any, *, is_driven: bool) -> None:
    """Refuse a run that would begin inside another one from which it cannot be told apart.

    Raises:
        ConcurrentRunError: a run of the same owner is under way here, or two runs that somebody else drives:
            whose the calls are could not be said.
    """
    scope = innermost(base)
    if scope is None or not scope.is_run:
        return
    if scope.owner is owner:
        raise ConcurrentRunError(
            "this IntervenableModel is running already; a run cannot be entered twice. For the untouched "
            "model inside a run, use `with m.disabled()`"
        )
    if is_driven and scope.is_driven:
        raise ConcurrentRunError(
            "another IntervenedModel is attached to this base model already, and calls of the model would "
            "belong to both. Leave it first, or declare the interventions of both in one spec"
        )
