"""What a recipe gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Fitted:
    """The outcome of a recipe.

    Attributes:
        tensors: full tensor name → tensor.
        provenance: how they came about, JSON values: the recipe, its data's hash, counts, norms.
    """

    tensors: dict[str, torch.Tensor]
    provenance: dict[str, Any]
