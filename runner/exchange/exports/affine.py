"""Edits that are affine maps of the activation, whatever it is: o ↦ o + s·(B·A·o + d).

Several at one site act one after another, and what comes of it is affine again, so that their order is kept
exactly: (I + B₂A₂)(o + B₁A₁·o + d₁) + d₂ has the readers A₁ and A₂, the writers B₁ + B₂(A₂B₁) and B₂, and the
constant d₁ + B₂A₂·d₁ + d₂.
"""

from __future__ import annotations

from subvene.interventions import ActivationIntervention, Affine


def affine_of(edit: ActivationIntervention) -> Affine | None:
    """What an edit adds at a token that it edits, its strength included; None where it is no affine map."""
    affine = edit.affine()
    if affine is None or not edit.linear_in_strength:
        return None
    return affine.scaled(edit.strength.detach().cpu().double())
