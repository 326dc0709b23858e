"""Biases that a model has by its config alone, so that transformers loads them without code of ours."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from subvene.runner.exchange.exports.base import KEEP, BakeError
from subvene.runner.models.anatomy import text_config


def bias_switches(model: Any, without_bias: Sequence[str]) -> dict[str, bool]:
    """The fields of the config which, set so, give every module of `without_bias` a bias, and nothing else.

    Found by building the class anew on the meta device, so that no table of architectures grows old.

    Raises:
        BakeError: the architecture has no such field for one of them.
    """
    chosen: dict[str, bool] = {}
    wanted = set(without_bias)
    if not wanted:
        return chosen
    plain = _shapes(model, {})
    for name, value in sorted(vars(text_config(model.config)).items()):
        if "bias" not in name or not isinstance(value, bool) or not wanted:
            continue
        try:
            shapes = _shapes(model, {name: not value})
        except (ValueError, TypeError, NotImplementedError, RuntimeError, AttributeError):
            continue  # a combination that this class refuses
        more = {key for key in shapes if key not in plain}
        same = all(shapes.get(key) == shape for key, shape in plain.items())
        given = {path for path in wanted if f"{path}.bias" in more}
        if given and same and all(key.endswith("bias") for key in more):
            chosen[name] = not value
            wanted -= given
    if wanted:
        example = min(wanted)
        raise BakeError(
            f"this cannot be baked: {type(model).__name__} has no field in its config that gives {example} a "
            "bias, so transformers would load the checkpoint without it (or only with code of its own). "
            f"Instead, {KEEP}; or use a model whose config can carry it (`attention_bias` of Llama and "
            "Qwen3, GPT-2, GPT-NeoX, OPT, Phi, …)"
        )
    return chosen


def switch_on(model: Any, switches: Mapping[str, bool]) -> None:
    """Set the fields in the model's config, and give every module the bias that it now has, as zeros."""
    for name, value in switches.items():
        setattr(text_config(model.config), name, value)
    if not switches:
        return
    present = model.state_dict()
    for name, shape in _shapes(model, {}).items():
        if name in present:
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        weight = next(module.parameters(recurse=False), next(model.parameters()))
        bias = nn.Parameter(weight.new_zeros(shape), requires_grad=weight.requires_grad)
        module.register_parameter(name.rpartition(".")[2], bias)


def _shapes(model: Any, switches: Mapping[str, bool]) -> dict[str, torch.Size]:
    """Names and shapes of the state of a model of this class, with these fields of its config."""
    config = copy.deepcopy(model.config)
    for name, value in switches.items():
        setattr(text_config(config), name, value)
    with torch.device("meta"):
        built = type(model)(config)
    return {name: tensor.shape for name, tensor in built.state_dict().items()}
