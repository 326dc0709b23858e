"""The verdicts against what two orders of two edits really do to random activations, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from outside_kind import Amplifying, Outside

from subvene.interventions import (
    AblationIntervention,
    ActivationIntervention,
    Affine,
    CappingIntervention,
    HeadDirectionIntervention,
    LowRankEditIntervention,
    PyveneIntervention,
    SteeringIntervention,
)
from subvene.runner.edits.commute import never_meet, verdict
from subvene.specs import FirstTokens, LastTokens, Positions, TokenIndices

WIDTH = 12


def axis(*weights: tuple[int, float]) -> torch.Tensor:
    vector = torch.zeros(WIDTH)
    for i, weight in weights:
        vector[i] = weight
    return vector


X, Y, XY = axis((0, 1)), axis((1, 1)), axis((0, 1), (1, 1))


def low_rank(reads: torch.Tensor, writes: torch.Tensor, **options: object) -> LowRankEditIntervention:
    return LowRankEditIntervention(reads.view(-1, WIDTH), writes.view(-1, WIDTH), **options)


EDITS: dict[str, Callable[[], ActivationIntervention]] = {
    "steer_x": lambda: SteeringIntervention(3 * X, strength=2.0),
    "steer_y": lambda: SteeringIntervention(Y, strength=-1.0),
    "steer_nothing": lambda: SteeringIntervention(0 * X, strength=1.0),
    "heads_x": lambda: HeadDirectionIntervention(X.view(3, 4), torch.tensor([2.0, 1.0, 1.0]), strength=1.5),
    "ablate_x": lambda: AblationIntervention(X),
    "ablate_minus_x_half": lambda: AblationIntervention(-X, strength=0.5),
    "ablate_y": lambda: AblationIntervention(Y),
    "ablate_xy": lambda: AblationIntervention(XY),
    "cap_x": lambda: CappingIntervention(X, ceiling=0.5),
    "cap_x_far": lambda: CappingIntervention(X, floor=0.8, ceiling=2.0),
    "cap_minus_x": lambda: CappingIntervention(-X, ceiling=0.2),
    "cap_minus_x_far": lambda: CappingIntervention(-X, floor=0.4),
    "cap_x_at_0": lambda: CappingIntervention(X, ceiling=0.0),
    "cap_x_both_at_0": lambda: CappingIntervention(X, ceiling=0.0, floor=0.0, strength=0.7),
    "cap_x_half": lambda: CappingIntervention(X, ceiling=0.5, strength=0.5),
    "cap_x_half_far": lambda: CappingIntervention(X, floor=0.7, strength=0.5),
    "cap_x_beyond": lambda: CappingIntervention(X, floor=-1.0, ceiling=0.5, strength=3.0),
    "cap_y_floor": lambda: CappingIntervention(Y, floor=-0.3, strength=0.5),
    "cap_xy": lambda: CappingIntervention(XY, ceiling=0.3),
    "read_x_write_y": lambda: low_rank(X, Y),
    "read_y_write_x": lambda: low_rank(Y, X),
    "read_x_write_x": lambda: low_rank(X, X),
    "flip_x": lambda: low_rank(X, X, strength=-3.0),
    "rank_2": lambda: low_rank(torch.stack([X, Y]), torch.stack([axis((2, 1)), axis((3, 1))])),
    "cancels_on_xy": lambda: low_rank(torch.stack([X, -Y]), torch.stack([axis((4, 1)), axis((4, 1))])),
    "steer_xy": lambda: SteeringIntervention(XY, strength=1.0),
    "untrained": lambda: low_rank(X, 0 * X),
    "off": lambda: AblationIntervention(X, strength=0.0),
}


def order_matters(first: ActivationIntervention, second: ActivationIntervention) -> bool:
    generator = torch.Generator().manual_seed(0)
    h = 2 * torch.randn(1, 4000, WIDTH, generator=generator, dtype=torch.float64)

    def apply(edit: ActivationIntervention, h: torch.Tensor) -> torch.Tensor:
        return h + edit.strength.double() * edit.delta(h)

    with torch.no_grad():
        difference = apply(second, apply(first, h)) - apply(first, apply(second, h))
    return float(difference.abs().max()) > 1e-5


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations_with_replacement(EDITS, 2)))
def test_the_verdict_is_what_happens(one: str, other: str) -> None:
    first, second = EDITS[one](), EDITS[other]()
    found = verdict(first, second)
    assert found.commutes is (not order_matters(first, second)), found.reason
    assert verdict(second, first).commutes is found.commutes
    assert found.reason


def test_both_answers_occur_for_every_pair_of_kinds() -> None:
    """Otherwise the test above would also pass for a verdict that never says no, or never yes."""
    seen: dict[frozenset[str], set[bool]] = {}
    for one, other in itertools.combinations_with_replacement(EDITS, 2):
        first, second = EDITS[one](), EDITS[other]()
        if first.strength.any() and second.strength.any():
            kinds = frozenset((first.kind, second.kind))
            seen.setdefault(kinds, set()).add(order_matters(first, second))
    additive = {"steering", "head_direction"}
    for kinds, answers in seen.items():
        assert answers == ({False} if kinds <= additive else {True, False}), kinds


def test_rounding_of_float32_directions_does_not_decide() -> None:
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(4096, generator=generator)
    u = torch.randn(4096, generator=generator)
    u -= (u @ v) / (v @ v) * v
    assert verdict(SteeringIntervention(u), AblationIntervention(v)).commutes
    assert not verdict(SteeringIntervention(u + 0.01 * v), AblationIntervention(v)).commutes
    assert verdict(AblationIntervention(u), AblationIntervention(v)).commutes
    assert verdict(CappingIntervention(u, ceiling=1), CappingIntervention(v, ceiling=1)).commutes


def test_what_is_not_decided_is_said() -> None:
    own = PyveneIntervention(options={"class": "ZeroIntervention"})
    for edit in (SteeringIntervention(X), AblationIntervention(X), CappingIntervention(X, ceiling=1)):
        assert verdict(edit, own).commutes is None
        assert verdict(own, edit).commutes is None


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ("prompt", FirstTokens(first=2, of="response"), True),
        ("last_prompt_token", TokenIndices(indices=(0,), of="response"), True),
        (LastTokens(last=1), LastTokens(last=1, of="response"), True),
        ("prompt", "response", False),  # they meet at the last prompt token
        ("all", FirstTokens(first=2, of="response"), False),
        ("response", FirstTokens(first=2, of="response"), False),
        (FirstTokens(first=1), LastTokens(last=1), False),  # a prompt of one token
    ],
)
def test_edits_that_never_meet_commute(one: Positions, other: Positions, apart: bool) -> None:
    assert never_meet(one, other) is never_meet(other, one) is apart
    pair = SteeringIntervention(X, positions=one), AblationIntervention(X, positions=other)
    assert verdict(*pair).commutes is apart


# --- self-monitored head directions: 3 heads of 4


def monitored(
    head: int, adds: tuple[int, float], reads: tuple[int, float], bias: float = 0.3, strength: float = 2.0
) -> HeadDirectionIntervention:
    """A shift of one head along one axis, monitored by a probe along one axis of that head."""
    directions, probes = torch.zeros(3, 4), torch.zeros(3, 4)
    directions[head, adds[0]], probes[head, reads[0]] = adds[1], reads[1]
    return HeadDirectionIntervention(directions, None, probes, torch.full((3,), bias), strength=strength)


MONITORED: dict[str, Callable[[], ActivationIntervention]] = {
    "add x read x": lambda: monitored(0, (0, 2.0), (0, 1.0)),
    "add x read y": lambda: monitored(0, (0, 2.0), (1, -1.0)),
    "add z read x": lambda: monitored(0, (2, 1.0), (0, 1.0), bias=-1.0),
    "second head": lambda: monitored(1, (0, 1.5), (0, 1.0), strength=-1.0),
}


@pytest.mark.parametrize("one", MONITORED)
@pytest.mark.parametrize("other", [*MONITORED, *EDITS])
def test_self_monitored_strengths_are_not_additive(one: str, other: str) -> None:
    first, second = MONITORED[one](), (MONITORED | EDITS)[other]()
    found, matters = verdict(first, second), order_matters(first, second)
    assert found.commutes in (not matters, None)
    assert verdict(second, first).commutes is found.commutes
    if second.is_additive or other == "off" or (other in MONITORED and not matters):
        assert found.commutes is not None
    assert first.is_additive is False


def test_self_monitored_strengths_commute_with_some_and_not_with_others() -> None:
    heads = MONITORED["add x read x"]()
    verdicts = {name: verdict(heads, make()).commutes for name, make in EDITS.items()}
    assert verdicts["steer_x"] is False
    assert verdicts["steer_y"] is verdicts["ablate_y"] is True
    assert verdicts["cap_x"] is verdicts["ablate_x"] is None


# --- kinds from outside the tree: nothing but what a class says is known of them


class Shifting(Outside):
    """h ← h + s·(⟨h, v̂⟩·v̂ + 2·v̂), a linear map and a constant."""

    linear_in_strength = True

    def delta(self, h: torch.Tensor) -> torch.Tensor:
        v = self.direction.to(h.dtype)
        return ((h @ v).unsqueeze(-1) + 2) * v

    def affine(self) -> Affine:
        v = self.direction.double()
        return Affine(v.unsqueeze(0), v.unsqueeze(0), 2 * v)


class Bounding(Outside, CappingIntervention):
    """Another kind's formula, which this does not follow."""

    kind = "outside"

    def __init__(self, direction: torch.Tensor) -> None:
        CappingIntervention.__init__(self, direction, ceiling=0.5)


@pytest.mark.parametrize("cls", [Amplifying, Shifting])
@pytest.mark.parametrize("v", [X, Y, XY], ids=["x", "y", "xy"])
@pytest.mark.parametrize("other", EDITS)
def test_what_a_class_says_decides(cls: type[Outside], v: torch.Tensor, other: str) -> None:
    first, second = cls(v, strength=0.7), EDITS[other]()
    found = verdict(first, second)
    assert found.commutes in (not order_matters(first, second), None), found.reason
    assert verdict(second, first).commutes is found.commutes
    assert found.commutes is not None or cls is Shifting
    if second.is_additive:
        assert found.commutes is not None


@pytest.mark.parametrize("cls", [Outside, Bounding])
@pytest.mark.parametrize("other", ["steer_y", "ablate_y", "cap_y_floor", "read_x_write_y"])
def test_nothing_is_told_of_a_class_that_says_nothing_or_what_is_not_so(
    cls: type[Outside], other: str
) -> None:
    for pair in ((cls(X), EDITS[other]()), (EDITS[other](), cls(X))):
        found = verdict(*pair)
        assert found.commutes is None
        assert ("contradicts itself" in found.reason) is (cls is Bounding)


def test_gates_that_leave_out_what_is_read_or_added_tell_nothing() -> None:
    edit = MONITORED["add x read y"]()
    right = edit.gates()
    assert right is not None
    for wrong in (replace(right, readers=-0 * right.readers), replace(right, writers=right.readers)):
        edit.gates = lambda wrong=wrong: wrong  # type: ignore[method-assign]
        assert verdict(edit, EDITS["steer_y"]()).commutes is None
