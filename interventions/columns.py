"""Columns: what a kind adds, in the one form that engines with buffers of fixed size can run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch

Form = Literal["constant", "linear", "bound", "gate"]


@dataclass(frozen=True)
class Columns:
    """Δ(h) = Σ_k f(⟨a_k, h⟩)·b_k, float64 on the CPU.

    Attributes:
        form: f. `constant`: 1; `linear`: p; `bound`: min(max(p, low), high) − p; `gate`: σ(−(p + bias)).
        a: readers, [columns, width]; zero where nothing is read.
        b: writers, [columns, width].
        low: of `bound`, [columns]; −∞ for none.
        high: of `bound`, [columns]; ∞ for none.
        bias: of `gate`, [columns].
    """

    form: Form
    a: torch.Tensor
    b: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def of(
        cls,
        form: Form,
        a: torch.Tensor | None,
        b: torch.Tensor,
        *,
        low: float = -math.inf,
        high: float = math.inf,
        bias: torch.Tensor | None = None,
    ) -> Self:
        """Columns of readers `a` [columns, width] (None: nothing is read) and writers `b`."""
        b = b.detach().cpu().double()
        a = torch.zeros_like(b) if a is None else a.detach().cpu().double()
        blank = b.new_zeros(len(b))
        bias = blank if bias is None else bias.detach().cpu().double()
        return cls(form, a, b, blank + low, blank + high, bias)

    @property
    def reads(self) -> bool:
        """Whether it depends on the activation."""
        return self.form != "constant"

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        """Δ(h) for `h` [..., width], float64."""
        p = h @ self.a.T
        match self.form:
            case "constant":
                factor = torch.ones_like(p)
            case "linear":
                factor = p
            case "bound":
                factor = p.maximum(self.low).minimum(self.high) - p
            case "gate":
                factor = torch.sigmoid(-(p + self.bias))
        return factor @ self.b


def added(columns: Sequence[Columns], h: torch.Tensor) -> torch.Tensor:
    """What several add together at `h` [..., width], which each of them reads as it stands."""
    return torch.stack([one(h) for one in columns]).sum(0)
