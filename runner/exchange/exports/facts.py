"""What the classes of a declared intervention say of it: what a format's verdict rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from subvene.interventions import ActivationIntervention

KEEP = "keep it in an artifact (`save_pretrained`), which subvene reloads and which edits exactly as declared"
"""The alternative that is always exact."""


@dataclass(frozen=True)
class Facts:
    """What holds for the edits of one declared intervention, one a layer; what a class does not say is False.

    Attributes:
        is_declared: it is known whether what is added depends on the activation.
        is_constant: what is added is a constant.
        is_affine: what is added is a linear map of the activation, and a constant.
        adds_constant: what is added is affine, with a constant that is not zero.
        formula: the form of what is added along one direction (`DirectionFormula`); None: it has none.
        is_fixed: the bounds of its formula are one value, so that the projection is set to it.
        acts_alone: stock pyvene gets the same edit.
        monitored: what stands in the place of its strength where that is read from the activation, in words.
        instead: a declaration near this one that more formats hold, in words.
    """

    is_declared: bool
    is_constant: bool
    is_affine: bool
    adds_constant: bool
    formula: str | None
    is_fixed: bool
    acts_alone: bool
    monitored: str | None
    instead: str | None

    @property
    def is_linear(self) -> bool:
        """What is added is affine and depends on the activation."""
        return self.is_affine and not self.is_constant

    @property
    def nearest(self) -> str:
        """What there is instead of an export that is exact."""
        return f"{self.instead}, or {KEEP}" if self.instead else KEEP

    @classmethod
    def of(cls, edits: Sequence[ActivationIntervention]) -> Facts:
        """The facts of the edits that one entry of a spec was built into."""
        affines = [edit.affine() if edit.linear_in_strength else None for edit in edits]
        formulas = [edit.direction_formula() if edit.linear_in_strength else None for edit in edits]
        gates = [edit.gates() if edit.linear_in_strength else None for edit in edits]
        forms = {None if formula is None else formula.form for formula in formulas}
        return cls(
            is_declared=bool(edits) and all(edit.depends_on_activation is not None for edit in edits),
            is_constant=bool(edits) and all(affine is not None and affine.is_constant for affine in affines),
            is_affine=bool(edits) and None not in affines,
            adds_constant=any(affine is not None and bool(affine.d.any()) for affine in affines),
            formula=forms.pop() if len(forms) == 1 else None,
            is_fixed=bool(edits)
            and all(f is not None and (f.form == "remove" or f.floor == f.ceiling) for f in formulas),
            acts_alone=bool(edits) and all(edit.acts_alone is True for edit in edits),
            monitored=next((one.strength for one in gates if one is not None), None),
            instead=next((edit.instead for edit in edits if edit.instead), None),
        )
