"""Taking an activation out of a module's call and handing another one back."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from subvene.interventions import Tokens
from subvene.runner.edits.positions import PositionError
from subvene.runner.edits.recorded import replace_recorded

PutBack = Callable[[torch.Tensor], Any]
See = Callable[[torch.Tensor], torch.Tensor | None]
"""Sees an activation; what it gives takes its place, None leaves it."""


def take_input(args: tuple[Any, ...], kwargs: MutableMapping[str, Any]) -> tuple[torch.Tensor, PutBack]:
    """A module's first input, and how a pre-hook hands a replacement back."""
    if args:
        return args[0], lambda new: ((new, *args[1:]), kwargs)
    name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
    return kwargs[name], lambda new: (args, {**kwargs, name: new})


def take_output(output: Any) -> tuple[torch.Tensor, PutBack]:
    """A module's (first) output, and how a forward hook hands a replacement back.

    Decoder blocks return a tuple in older transformers and a tensor in newer ones; some return an object.
    A replacement is also what `output_hidden_states` then shows.
    """
    if isinstance(output, torch.Tensor):
        found, wrapped = output, lambda new: new
    elif isinstance(output, (tuple, list)):
        found, wrapped = output[0], lambda new: type(output)((new, *output[1:]))
    else:
        name = next(iter(output.keys()))
        found, wrapped = output[name], lambda new: _with(output, name, new)

    def put_back(new: torch.Tensor) -> Any:
        replace_recorded(found, new)
        return wrapped(new)

    return found, put_back


def _with(output: Any, name: str, new: torch.Tensor) -> Any:
    output[name] = new
    return output


def on_input(module: torch.nn.Module, see: See) -> RemovableHandle:
    """Give a module's first input to `see` before every call."""

    def before(_module: Any, args: Any, kwargs: Any) -> Any:
        found, put_back = take_input(args, kwargs)
        new = see(found)
        return None if new is None else put_back(new)

    return module.register_forward_pre_hook(before, with_kwargs=True)


def on_output(module: torch.nn.Module, see: See) -> RemovableHandle:
    """Give what a module returns (first) to `see` after every call."""

    def after(_module: Any, _args: Any, output: Any) -> Any:
        found, put_back = take_output(output)
        new = see(found)
        return None if new is None else put_back(new)

    return module.register_forward_hook(after)


def is_half_registered(kwargs: Any) -> bool:
    """Whether a hook was called without the keywords that it is registered with.

    torch notes a hook first and that it takes keywords then: what calls it in between is another thread, and
    no part of the run that is about to begin.
    """
    return not isinstance(kwargs, dict)


def as_batch(h: torch.Tensor, tokens: Tokens, key: str) -> torch.Tensor:
    """`h` as [batch, tokens, width]; some modules (OPT's MLP, routers) see all tokens as rows.

    Raises:
        PositionError: its rows and tokens are not those of the forward call; `key` says whose it is.
    """
    batch, count = tokens.shape
    if h.ndim == 2 and h.shape[0] == batch * count:
        return h.view(batch, count, -1)
    if h.ndim != 3 or h.shape[:2] != (batch, count):
        raise PositionError(
            f"{key}: the activation has shape {list(h.shape)} and the forward call {batch} rows of {count} "
            "tokens; tokens that were packed, dropped or added on the way cannot be placed"
        )
    return h
