"""Which interventions commute: whether the order of two edits at one place matters.

Every edit is h ↦ h + s·Δ(h). At one place (site and layer) and one token, for strengths s, t ≠ 0 and in exact
arithmetic (in floating point, edits that commute may still differ by rounding):

* Two additive edits, Δ = u and Δ = w (steering, head directions), commute: h + s·u + t·w either way.
* Additive u and any Δ: h + s·u + t·Δ(h) against h + s·u + t·Δ(h + s·u), equal for every h iff Δ does not
  notice u. For a linear Δ(h) = M·h: iff M·u = 0. Ablation of v̂, M = −v̂·v̂ᵀ: iff ⟨u, v̂⟩ = 0. A low-rank edit,
  M = Σ_r b_r·a_rᵀ: iff Σ_r ⟨a_r, u⟩·b_r = 0. Capping on v̂: iff ⟨u, v̂⟩ = 0, because the bounded part
  φ(p) = clamp(p) − p of p = ⟨h, v̂⟩ is continuous and unbounded, hence not periodic.
* Two linear edits M and N: (I + s·M)(I + t·N) = (I + t·N)(I + s·M) iff M·N = N·M. Two ablations: iff their
  directions are orthogonal or the same line.
* Capping on v̂ and linear N: (I + t·N)h + s·φ(p)·(v̂ + t·N·v̂) against
  (I + t·N)h + s·φ(⟨v̂ + t·Nᵀ·v̂, h⟩)·v̂. Equal for every h iff N·v̂ = λ·v̂, Nᵀ·v̂ = λ·v̂ and κ·φ(p) = φ(κ·p) for
  every p, with κ = 1 + t·λ: always for κ = 1, iff the bounds enclose 0 for κ = 0, iff every bound is 0 for
  other κ > 0, and iff both are 0 for κ < 0.
* Two cappings, on v̂ and ŵ, c = ⟨v̂, ŵ⟩. c = 0: they commute. 0 < |c| < 1: they never do. Let p exceed the
  first bound. If the first edit pushes q = ⟨h, ŵ⟩ towards the second bound, take q within it and p so large
  that q passes it only after the first edit; if away from it, take q so little beyond it that the first edit
  brings it back. Either way one order makes two edits, of which the other makes one. |c| = 1: both bound one
  number, p ↦ p + s·φ(p); full clamps commute iff their intervals meet, and other strengths are compared knot
  by knot of the piecewise linear compositions.

* Gates (a self-monitored head direction), Δ(h) = Σ_k g_k(⟨w_k, h⟩)·u_k, and additive u: iff ⟨w_k, u⟩ = 0
  for each k, since every g_k is strictly monotonic and the u_k are independent. Two of them commute if
  neither's readers read what the other adds (other heads, for one), and if they are the same edit; one and a
  linear edit M, if M ignores every u_k and writes nothing that a w_k reads. Otherwise this module does not
  tell.

What an edit is, its class says (`affine`, `direction_formula`, `gates`, `linear_in_strength`). Of one that
does not say it, or says what it does not do, nothing is told.

Edits of different sites or layers have the order in which the model computes them, whatever the file says.
Edits that never meet at a token commute.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from subvene.interventions import ActivationIntervention, DirectionFormula, Gates
from subvene.interventions.positions import is_within_prompt
from subvene.runner.edits.statements import contradictions
from subvene.specs import FirstTokens, LastTokens, Positions, TokenIndices

TOLERANCE = 1e-6
"""Relative to the norms of what is multiplied; float32 directions are orthogonal to about 1e-7."""


@dataclass(frozen=True)
class Verdict:
    """Whether the order of two edits at one place is without effect.

    Attributes:
        commutes: None where this module cannot tell.
        reason: why, in words.
    """

    commutes: bool | None
    reason: str


@dataclass(frozen=True)
class _Linear:
    """Δ(h) = Σ_r ⟨a_r, h⟩·b_r, a and b float64 [rank, width]."""

    a: torch.Tensor
    b: torch.Tensor

    def __matmul__(self, vector: torch.Tensor) -> torch.Tensor:
        return (self.a @ vector) @ self.b

    @property
    def transposed(self) -> _Linear:
        return _Linear(self.b, self.a)

    def norm(self) -> float:
        """The Frobenius norm: ‖BᵀA‖² = tr((B·Bᵀ)(A·Aᵀ))."""
        return math.sqrt(max(0.0, float(((self.b @ self.b.T) * (self.a @ self.a.T)).sum())))


def verdict(first: ActivationIntervention, second: ActivationIntervention) -> Verdict:
    """Whether two edits at one site and layer commute; see the module for the maths."""
    if not first.strength.any() or not second.strength.any():
        return Verdict(True, "one of them has strength 0")
    if never_meet(first.positions, second.positions):
        return Verdict(True, "they edit different tokens")
    for edit in (first, second):
        if problem := next(contradictions(edit), None):
            return Verdict(None, f"the class of the {edit.kind} contradicts itself: {problem}")
    if first.is_additive and second.is_additive:
        return Verdict(True, "both add a constant")
    if second.is_additive:
        first, second = second, first
    if first.is_additive:
        return _additive(first, second)
    if not (first.linear_in_strength and second.linear_in_strength):
        return _undecided(first, second)
    if first.gates() is not None:
        return _gated(first, second)
    if second.gates() is not None:
        return _gated(second, first)
    return _ungated(first, second)


def _ungated(first: ActivationIntervention, second: ActivationIntervention) -> Verdict:
    caps, lines = [_cap(first), _cap(second)], [_linear(first), _linear(second)]
    if caps[0] is not None and caps[1] is not None:
        return _two_caps(caps[0], caps[1], first.strength, second.strength)
    if caps[0] is not None and lines[1] is not None:
        return _cap_and_linear(caps[0], lines[1], second.strength)
    if caps[1] is not None and lines[0] is not None:
        return _cap_and_linear(caps[1], lines[0], first.strength)
    if lines[0] is not None and lines[1] is not None:
        return _two_linear(lines[0], lines[1])
    return _undecided(first, second)


def _undecided(first: ActivationIntervention, second: ActivationIntervention) -> Verdict:
    return Verdict(None, f"not decided for {first.kind} and {second.kind}")


def never_meet(one: Positions, other: Positions) -> bool:
    """Whether two position rules can select no common token, whatever the prompt."""
    # `response` as a mode begins with the last prompt token; `of: response` begins with the token after it.
    return (is_within_prompt(one) and _after_prompt(other)) or (
        is_within_prompt(other) and _after_prompt(one)
    )


def _after_prompt(rule: Positions) -> bool:
    return isinstance(rule, FirstTokens | LastTokens | TokenIndices) and rule.of == "response"


def _constant(edit: ActivationIntervention) -> torch.Tensor | None:
    """What an edit that depends on nothing adds; None where its class does not say it."""
    if (affine := edit.affine()) is not None:
        return affine.d
    formula = edit.direction_formula()
    return None if formula is None else formula.vector.cpu().double()


def _linear(edit: ActivationIntervention) -> _Linear | None:
    """Δ as a linear map without a constant, if its class says that it is one."""
    if (affine := edit.affine()) is not None:
        return None if affine.d.any() else _Linear(affine.a, affine.b)
    formula = edit.direction_formula()
    if formula is None or formula.form != "remove":
        return None
    direction = formula.vector.cpu().double().unsqueeze(0)
    return _Linear(direction, -direction)


def _cap(edit: ActivationIntervention) -> DirectionFormula | None:
    """The bounds of an edit along a direction of unit length, if its class says that it has them."""
    formula = edit.direction_formula()
    if formula is None or formula.form != "bound" or abs(float(formula.vector.norm()) - 1) > TOLERANCE:
        return None
    return formula


def _additive(adding: ActivationIntervention, other: ActivationIntervention) -> Verdict:
    u = _constant(adding)
    if u is None:
        return _undecided(adding, other)
    if not other.linear_in_strength:
        return Verdict(None, f"not decided for {other.kind}")
    if (formula := other.direction_formula()) is not None:
        cosine = _cosine(u, formula.vector)
        what = f"cosine of the added vector and the direction of the {other.kind}: {cosine:.3g}"
        return Verdict(
            abs(cosine) <= TOLERANCE, f"{what}; it would have to be 0" if abs(cosine) > TOLERANCE else what
        )
    if (affine := other.affine()) is not None:
        linear = _Linear(affine.a, affine.b)
        effect, scale = float((linear @ u).norm()), linear.norm() * float(u.norm())
        small = effect <= TOLERANCE * scale
        return Verdict(
            small,
            f"the {other.kind} {'ignores' if small else 'reads'} the added vector, ‖M·u‖ = {effect:.3g}",
        )
    if (gates := other.gates()) is not None:
        ignored = _ignores(gates.readers, u.unsqueeze(0))
        return Verdict(
            ignored,
            f"the probes that set the other's strength {'ignore' if ignored else 'read'} the added vector",
        )
    return Verdict(None, f"not decided for {other.kind}")


def _gated(edit: ActivationIntervention, other: ActivationIntervention) -> Verdict:
    own, others = edit.gates(), other.gates()
    if own is not None and others is not None:
        if _ignores(own.readers, others.writers) and _ignores(others.readers, own.writers):
            return Verdict(True, "neither's probes read what the other adds")
        if _same(edit, other):
            return Verdict(True, "they are the same edit")
    elif own is not None and (linear := _linear(other)) is not None and _apart(own, linear):
        return Verdict(True, f"the {other.kind} neither reads what is added nor writes what the probes read")
    return Verdict(None, f"not decided for a self-monitored {edit.kind} and {other.kind}")


def _apart(gates: Gates, linear: _Linear) -> bool:
    return _ignores(linear.a, gates.writers) and _ignores(gates.readers, linear.b)


def _same(edit: ActivationIntervention, other: ActivationIntervention) -> bool:
    """Whether two edits are of one class, with the same tensors and options."""
    state, others_state = edit.state_dict(), other.state_dict()
    names = ("strength", *edit.buffer_names, *edit.parameter_names)
    return (
        type(edit) is type(other)
        and edit.options == other.options
        and all(torch.equal(state[name], others_state[name]) for name in names)
    )


def _ignores(readers: torch.Tensor, vectors: torch.Tensor) -> bool:
    """Whether every ⟨reader, vector⟩ is 0; both [any number, width]."""
    scale = readers.norm(dim=-1).unsqueeze(1) * vectors.norm(dim=-1)
    return bool(((readers @ vectors.T).abs() <= TOLERANCE * scale).all())


def _two_linear(m: _Linear, n: _Linear) -> Verdict:
    # MN − NM = [B_mᵀ·C, −B_nᵀ·D]·[A_n; A_m] with C = A_m·B_nᵀ, D = A_n·B_mᵀ: no width × width matrix is made.
    commutator = _Linear(
        torch.cat([n.a, m.a]), torch.cat([(m.a @ n.b.T).T @ m.b, -((n.a @ m.b.T).T @ n.b)])
    ).norm()
    small = commutator <= TOLERANCE * m.norm() * n.norm()
    return Verdict(small, f"‖M·N − N·M‖ = {commutator:.3g}")


def _cap_and_linear(cap: DirectionFormula, n: _Linear, strength: torch.Tensor) -> Verdict:
    v = cap.vector.cpu().double()
    read, written = n.transposed @ v, n @ v
    slack = TOLERANCE * n.norm()
    along = float(v @ written)
    if float((written - along * v).norm()) > slack or float((read - along * v).norm()) > slack:
        return Verdict(False, "the other edit reads or writes the capped direction")
    if abs(along) <= slack:
        return Verdict(True, "the other edit neither reads nor writes the capped direction")
    bounds = [cap.floor, cap.ceiling]
    commute = all(_scales(bounds, 1.0 + t * along) for t in strength.cpu().double().reshape(-1).tolist() if t)
    return Verdict(commute, f"both act along one direction, bounds {bounds[0]:g} to {bounds[1]:g}")


def _scales(bounds: Sequence[float], factor: float) -> bool:
    """Whether κ·φ(p) = φ(κ·p) for every p."""
    floor, ceiling = bounds
    if abs(factor - 1) <= TOLERANCE:
        return True
    if abs(factor) <= TOLERANCE:
        return floor <= 0 <= ceiling
    if factor > 0:
        return all(bound == 0 or math.isinf(bound) for bound in bounds)
    return floor == ceiling == 0


def _two_caps(
    one: DirectionFormula, other: DirectionFormula, strength: torch.Tensor, others_strength: torch.Tensor
) -> Verdict:
    cosine = _cosine(one.vector.cpu().double(), other.vector)
    if abs(cosine) <= TOLERANCE:
        return Verdict(True, "the capped directions are orthogonal")
    if abs(cosine) < 1 - TOLERANCE:
        return Verdict(False, f"cosine of the capped directions: {cosine:.3g}; it would have to be 0")
    rows = torch.broadcast_tensors(strength.cpu().double(), others_strength.cpu().double())
    strengths = zip(*(row.reshape(-1).tolist() for row in rows), strict=True)
    bounds, first = (other.floor, other.ceiling), (one.floor, one.ceiling)
    second = bounds if cosine > 0 else (-bounds[1], -bounds[0])
    commute = all(_clamps_commute(first, second, s, t) for s, t in strengths)
    return Verdict(commute, f"one direction capped twice, to {_interval(first)} and to {_interval(second)}")


def _clamps_commute(one: tuple[float, float], other: tuple[float, float], s: float, t: float) -> bool:
    """Whether p + s·(clamp(p) − p) of two intervals commute.

    Both compositions are linear between their knots, so they are equal iff they agree at every knot and at
    two numbers beyond each end. Knots are the bounds, and what one edit takes to a bound of the other.
    """

    def capped(p: float, bounds: tuple[float, float], strength: float) -> float:
        return p + strength * (min(max(p, bounds[0]), bounds[1]) - p)

    knots = [b for b in (*one, *other) if math.isfinite(b)]
    for strength, mine, others in ((s, one, other), (t, other, one)):
        if strength != 1:
            pairs = itertools.product(filter(math.isfinite, mine), filter(math.isfinite, others))
            knots += [(there - strength * here) / (1 - strength) for here, there in pairs]
    ends = (min(knots) - 2, min(knots) - 1, max(knots) + 1, max(knots) + 2)
    scale = max(map(abs, ends))
    return all(
        abs(capped(capped(p, one, s), other, t) - capped(capped(p, other, t), one, s)) <= TOLERANCE * scale
        for p in (*knots, *ends)
    )


def _interval(bounds: tuple[float, float]) -> str:
    return f"[{bounds[0]:g}, {bounds[1]:g}]"


def _cosine(u: torch.Tensor, v: torch.Tensor) -> float:
    v = v.detach().cpu().double().reshape(-1)
    scale = float(u.norm() * v.norm())
    return float(u @ v) / scale if scale else 0.0
