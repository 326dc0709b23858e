"""What the classes of a declared intervention say of it: what a format's verdict rests on."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from subvene.interventions import ActivationIntervention, Affine, DirectionFormula

_DRAWS = 16
# Of the largest number that is compared; edits keep their tensors in float32.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Facts:
    """What holds for the edits of one declared intervention, one a layer; what a class does not say is False.

    Attributes:
        is_declared: it is known whether what is added depends on the activation.
        is_constant: what is added is a constant.
        is_affine: what is added is a linear map of the activation, and a constant.
        formula: the form of what is added along one direction (`DirectionFormula`); None: it has none.
        is_fixed: the bounds of its formula are one value, so that the projection is set to it.
        acts_alone: stock pyvene gets the same edit.
    """

    is_declared: bool
    is_constant: bool
    is_affine: bool
    formula: str | None
    is_fixed: bool
    acts_alone: bool

    @property
    def is_linear(self) -> bool:
        """What is added is affine and depends on the activation."""
        return self.is_affine and not self.is_constant

    @classmethod
    def of(cls, edits: Sequence[ActivationIntervention]) -> Facts:
        """The facts of the edits that one entry of a spec was built into."""
        affines = [edit.affine() if edit.linear_in_strength else None for edit in edits]
        formulas = [edit.direction_formula() if edit.linear_in_strength else None for edit in edits]
        forms = {None if formula is None else formula.form for formula in formulas}
        return cls(
            is_declared=bool(edits) and all(edit.depends_on_activation is not None for edit in edits),
            is_constant=bool(edits) and all(affine is not None and affine.is_constant for affine in affines),
            is_affine=bool(edits) and None not in affines,
            formula=forms.pop() if len(forms) == 1 else None,
            is_fixed=bool(edits)
            and all(f is not None and (f.form == "remove" or f.floor == f.ceiling) for f in formulas),
            acts_alone=bool(edits) and all(edit.acts_alone is True for edit in edits),
        )


@torch.no_grad()
def contradictions(edit: ActivationIntervention) -> Iterator[str]:
    """What a class says of its edit that is not what the edit does, at activations that are drawn.

    So that a kind with another kind's formula is caught whatever the texts are that an export is measured on.
    """
    affine, formula = edit.affine(), edit.direction_formula()
    if affine is not None:
        yield from _differs("affine()", edit, affine, affine.d)
    if formula is not None:
        yield from _differs("direction_formula()", edit, formula, formula.vector)
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
    # A copy, since not every device has float64.
    edit = copy.deepcopy(edit).cpu()
    for strength in (1.0, 2.0):
        found = edit.edit(h, torch.full((1, 1, 1), strength, dtype=torch.float64)) - h
        scale = max(1e-12, float(expected.abs().max()), _TOLERANCE * float(h.abs().max()))
        if not bool((found - strength * expected).abs().max() <= strength * _TOLERANCE * scale):
            yield f"{what} is not what it adds at strength {strength:g}"
            return


def _drawn(along: torch.Tensor, stated: Affine | DirectionFormula) -> torch.Tensor:
    """Activations [1, draws, width], float64: small and large ones, within the bounds of a cap and beyond."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(1, _DRAWS, len(along), dtype=torch.float64, generator=generator)
    size = 1.0
    if isinstance(stated, DirectionFormula):
        bounds = (stated.floor, stated.ceiling)
        size += max((abs(bound) for bound in bounds if abs(bound) != float("inf")), default=0.0)
    v = along.double() / along.double().norm().clamp_min(1e-30)
    return h + 2 * size * torch.linspace(-1, 1, _DRAWS, dtype=torch.float64).view(1, -1, 1) * v
