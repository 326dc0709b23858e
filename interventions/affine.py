"""Affine edits: what a kind adds, where that is a linear map of the activation and a constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True)
class Affine:
    """Δ(o) = Σ_r ⟨a_r, o⟩·b_r + d, in float64 on the CPU.

    Attributes:
        a: readers, [rank, width]; rank 0 for a constant.
        b: writers, [rank, width].
        d: the constant, [width].
    """

    a: torch.Tensor
    b: torch.Tensor
    d: torch.Tensor

    @classmethod
    def constant(cls, d: torch.Tensor) -> Self:
        """Δ(o) = d."""
        d = d.detach().cpu().double().reshape(-1)
        return cls(d.new_zeros(0, len(d)), d.new_zeros(0, len(d)), d)

    @classmethod
    def linear(cls, a: torch.Tensor, b: torch.Tensor) -> Self:
        """Δ(o) = Σ_r ⟨a_r, o⟩·b_r."""
        a, b = a.detach().cpu().double(), b.detach().cpu().double()
        return cls(a, b, a.new_zeros(a.shape[1]))

    @property
    def is_constant(self) -> bool:
        """Whether it reads nothing."""
        return not len(self.a)

    def __call__(self, o: torch.Tensor) -> torch.Tensor:
        """Δ(o) for `o` [..., width], float64."""
        return (o @ self.a.T) @ self.b + self.d

    def scaled(self, strength: float | torch.Tensor) -> Affine:
        """Strength · Δ."""
        return Affine(self.a, strength * self.b, strength * self.d)

    def at(self, columns: Sequence[int], width: int) -> Affine:
        """The same on these columns of an activation of another width, of which the rest is left alone."""
        a, b = self.a.new_zeros(len(self.a), width), self.b.new_zeros(len(self.b), width)
        d = self.d.new_zeros(width)
        index = list(columns)
        a[:, index], b[:, index], d[index] = self.a, self.b, self.d
        return Affine(a, b, d)

    def then(self, second: Affine) -> Affine:
        """What o ↦ o + Δ(o), and after it the second, add together."""
        passed_on = (second.a @ self.b.T).T @ second.b
        return Affine(
            torch.cat([self.a, second.a]),
            torch.cat([self.b + passed_on, second.b]),
            self.d + (second.a @ self.d) @ second.b + second.d,
        )
