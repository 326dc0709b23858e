"""Edits that are affine maps of the activation, whatever it is: o ↦ o + B·A·o + d.

Several at one site act one after another, and what comes of it is affine again, so that their order is kept
exactly: (I + B₂A₂)(o + B₁A₁·o + d₁) + d₂ has the readers A₁ and A₂, the writers B₁ + B₂(A₂B₁) and B₂, and the
constant d₁ + B₂A₂·d₁ + d₂.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from subvene.interventions import AblationIntervention, ActivationIntervention, LowRankEditIntervention


@dataclass(frozen=True)
class Affine:
    """o ↦ o + Σ_r ⟨a_r, o⟩·b_r + d, in float64 on the CPU.

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
        """The map o ↦ o + d."""
        d = d.detach().cpu().double().reshape(-1)
        return cls(d.new_zeros(0, len(d)), d.new_zeros(0, len(d)), d)

    @classmethod
    def linear(cls, a: torch.Tensor, b: torch.Tensor) -> Self:
        """The map o ↦ o + Σ_r ⟨a_r, o⟩·b_r."""
        a, b = a.detach().cpu().double(), b.detach().cpu().double()
        return cls(a, b, a.new_zeros(a.shape[1]))

    def then(self, second: Affine) -> Affine:
        """This edit and after it the second."""
        passed_on = (second.a @ self.b.T).T @ second.b
        return Affine(
            torch.cat([self.a, second.a]),
            torch.cat([self.b + passed_on, second.b]),
            self.d + (second.a @ self.d) @ second.b + second.d,
        )


def affine_of(edit: ActivationIntervention) -> Affine | None:
    """What an edit is at a token that it edits; None where it is no affine map."""
    strength = edit.strength.detach().cpu().double()
    if edit.is_additive:
        constant = edit.delta(torch.zeros(1, 1, 1)).detach().cpu().double()
        return Affine.constant(strength * constant)
    if isinstance(edit, LowRankEditIntervention):
        return Affine.linear(edit.a * edit.read_mask, strength * (edit.b * edit.write_mask).cpu().double())
    if isinstance(edit, AblationIntervention):
        direction = edit.direction.detach().cpu().double().unsqueeze(0)
        return Affine.linear(direction, -strength * direction)
    return None
