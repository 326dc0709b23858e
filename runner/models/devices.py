"""Where a model takes its inputs and its weights lie, also where accelerate brings them in call by call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch


def input_device(model: Any) -> torch.device:
    """The device that a model's inputs go to: that of its first parameter, or where that is brought to.

    A weight that accelerate offloads is on `meta` between calls, and so is what is moved to `model.device`.
    """
    device = model.device
    if device.type == "meta":
        for module in model.modules():
            for hook in _hooks(module):
                if (executing := getattr(hook, "execution_device", None)) is not None:
                    return torch.device(executing)
    return torch.device(device)


def placed_as(model: Any, load: Callable[..., Any]) -> Any:
    """What `load` loads, where another model of the same architecture lies: on one device or on several.

    Args:
        model: the other one.
        load: takes transformers' `device_map`.
    """
    where = getattr(model, "hf_device_map", None) or {}
    if len(set(where.values())) > 1:
        return load(device_map=dict(where))
    return load().to(input_device(model))


def is_offloaded(model: torch.nn.Module) -> bool:
    """Whether some weights are not with the model, but brought in when a module runs."""
    return any(tensor.is_meta for tensor in model.parameters())


def named_values(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """A model's parameters and buffers by name, each once; offloaded ones read from where they are kept.

    A tensor that is kept nowhere (of a model without weights) comes as it is, on `meta`.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_meta:
            yield name, tensor
        elif name not in tied:  # two tensors on `meta` are one no more
            yield name, _kept(model, name, tensor)


def _kept(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    place, _, own = name.rpartition(".")
    for hook in _hooks(model.get_submodule(place)):
        weights = getattr(hook, "weights_map", None)
        if weights is not None and own in weights:
            found: torch.Tensor = weights[own]
            return found
    return tensor


def _hooks(module: torch.nn.Module) -> tuple[Any, ...]:
    """Accelerate's hooks of a module; several stand in one."""
    hook = getattr(module, "_hf_hook", None)
    return tuple(getattr(hook, "hooks", () if hook is None else (hook,)))
