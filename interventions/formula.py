"""Formulas along one direction: what a kind does, in the few forms that a file of vectors can name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class DirectionFormula:
    """What is added to an activation h, by one vector v.

    Attributes:
        form: `add`: v; `remove`: −⟨h, v⟩·v; `bound`: (min(max(⟨h, v⟩, floor), ceiling) − ⟨h, v⟩)·v.
        vector: v, [width], float32 on the CPU.
        floor: of `bound`; −∞ for none.
        ceiling: of `bound`; ∞ for none.
    """

    form: Literal["add", "remove", "bound"]
    vector: torch.Tensor
    floor: float = -math.inf
    ceiling: float = math.inf

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        """What is added at `h` [..., width]."""
        v = self.vector.to(h)
        if self.form == "add":
            return v.expand_as(h)
        p = (h @ v).unsqueeze(-1)
        target = torch.zeros_like(p) if self.form == "remove" else p.clamp(self.floor, self.ceiling)
        return (target - p) * v
