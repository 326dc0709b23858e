"""Linear maps of a model, whatever class they have."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from subvene.specs import SubveneError


class AnatomyError(SubveneError):
    """This model has no such part, or it cannot be told which module it is."""


def features_of(module: Any) -> tuple[int, int]:
    """(in, out) features of a linear map; transformers' Conv1D stores its weight transposed."""
    if hasattr(module, "in_features"):
        return module.in_features, module.out_features
    return tuple(module.weight.shape)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map: `nn.Linear` and its like, or GPT-2's `Conv1D`."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return True
    return type(module).__name__ == "Conv1D" and getattr(module, "weight", torch.empty(0)).ndim == 2
