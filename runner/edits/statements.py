"""What the class of an edit states of it, held against what the edit does."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from subvene.interventions import ActivationIntervention, Affine, DirectionFormula, Gates

_DRAWS = 16
# Of the largest number that is compared; edits keep their tensors in float32.
_TOLERANCE = 1e-4


@torch.no_grad()
def contradictions(edit: ActivationIntervention) -> Iterator[str]:
    """What a class says of its edit that is not what the edit does, at activations that are drawn.

    So that a kind with another kind's formula is caught, whatever the texts are that it is then measured on.
    """
    affine, formula = edit.affine(), edit.direction_formula()
    if affine is not None:
        yield from _differs("affine()", edit, affine, affine.d)
    if formula is not None:
        yield from _differs("direction_formula()", edit, formula, formula.vector)
    if (gates := edit.gates()) is not None:
        yield from _not_gated(edit, gates)
    if affine is not None and edit.depends_on_activation is not (not affine.is_constant):
        yield f"depends_on_activation is {edit.depends_on_activation}, and affine() says otherwise"


def _differs(
    what: str,
    edit: ActivationIntervention,
    stated: Affine | DirectionFormula,
    along: torch.Tensor,
) -> Iterator[str]:
    h = _drawn(along, stated)
    expected = stated(h)
    for strength in (1.0, 2.0):
        if not _near(_added(edit, h, strength), strength * expected, h):
            yield f"{what} is not what it adds at strength {strength:g}"
            return


def _not_gated(edit: ActivationIntervention, gates: Gates) -> Iterator[str]:
    """Gates see nothing but what they read, and add nothing but what they write."""
    if not len(gates.readers):
        return
    h = _drawn(gates.readers.sum(0), gates)
    # By the pseudo-inverses, since readers may be zero or repeat each other.
    unread = h - (h @ torch.linalg.pinv(gates.readers)) @ gates.readers
    added = _added(edit, h, 1.0)
    written = (added @ torch.linalg.pinv(gates.writers)) @ gates.writers
    if not _near(_added(edit, h + unread, 1.0), added, h):
        yield "gates() leaves out something that it reads"
    if not _near(written, added, h):
        yield "gates() leaves out something that it adds"
    if not _near(_added(edit, h, 2.0), 2 * added, h):
        yield "gates() leaves the strength out, and what it adds at strength 2 is not twice what it adds at 1"


def _added(edit: ActivationIntervention, h: torch.Tensor, strength: float) -> torch.Tensor:
    # A copy, since not every device has float64.
    edit = copy.deepcopy(edit).cpu()
    return edit.edit(h, torch.full((1, 1, 1), strength, dtype=torch.float64)) - h


def _near(found: torch.Tensor, expected: torch.Tensor, h: torch.Tensor) -> bool:
    scale = max(1e-12, float(expected.abs().max()), _TOLERANCE * float(h.abs().max()))
    return bool((found - expected).abs().max() <= _TOLERANCE * scale)


def _drawn(along: torch.Tensor, stated: Affine | DirectionFormula | Gates) -> torch.Tensor:
    """Activations [1, draws, width], float64: small and large ones, within the bounds of a cap and beyond."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(1, _DRAWS, len(along), dtype=torch.float64, generator=generator)
    size = 1.0
    if isinstance(stated, DirectionFormula):
        bounds = (stated.floor, stated.ceiling)
        size += max((abs(bound) for bound in bounds if abs(bound) != float("inf")), default=0.0)
    v = along.double() / along.double().norm().clamp_min(1e-30)
    return h + 2 * size * torch.linspace(-1, 1, _DRAWS, dtype=torch.float64).view(1, -1, 1) * v
