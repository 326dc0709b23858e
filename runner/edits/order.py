"""The order of declared interventions: which pairs meet at a place, and whether their order matters there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypedDict

from subvene.interventions import ActivationIntervention
from subvene.runner.edits.commute import Verdict, verdict
from subvene.runner.edits.compile import entry_name
from subvene.specs import InterventionSpec

ELSEWHERE = "at different places: the model gives their order"

Edits = dict[str, ActivationIntervention]
"""The edits of one declared intervention, by `site[layer]`."""


class PairOrder(TypedDict):
    """What is known of the order of two interventions.

    `shared`: the places where both act; `commutes`: None where it cannot be told, or where they never meet
    (then `reason` is `ELSEWHERE`).
    """

    first: str
    second: str
    shared: list[str]
    commutes: bool | None
    reason: str


def pairs_of(spec: InterventionSpec, edits: Sequence[Edits]) -> list[PairOrder]:
    """Every pair of interventions and what is known of its order without running the model.

    Args:
        spec: what is declared.
        edits: for each intervention its edits; none where they could not be built.
    """
    return [_pair(spec, edits, i, j) for i, j in itertools.combinations(range(len(edits)), 2)]


def matters(pairs: Sequence[PairOrder]) -> bool | None:
    """Whether the order of interventions can matter, by their pairs; None where that cannot be told.

    Every order comes of another by exchanging neighbours, so that pairs which commute are enough.
    """
    if any(pair["commutes"] is False for pair in pairs):
        return True
    known = all(pair["commutes"] or pair["reason"] == ELSEWHERE for pair in pairs)
    return False if known else None


def _pair(spec: InterventionSpec, edits: Sequence[Edits], i: int, j: int) -> PairOrder:
    first, second = edits[i], edits[j]
    shared = [where for where in first if where in second]
    if not first or not second:
        shared, told = [], Verdict(None, "cannot be told without their tensors")
    elif any(spec.interventions[n].module_path is not None for n in (i, j)) and first.keys() != second.keys():
        reason = "a module's path and a site may be one place, which only the model tells"
        shared, told = [], Verdict(None, reason)
    elif not shared:
        told = Verdict(None, ELSEWHERE)
    else:
        told = _worst([_at(where, first[where], second[where]) for where in shared])
    return {
        "first": entry_name(spec, i),
        "second": entry_name(spec, j),
        "shared": shared,
        "commutes": told.commutes,
        "reason": told.reason,
    }


def _at(where: str, first: ActivationIntervention, second: ActivationIntervention) -> Verdict:
    """Whether two edits commute at a place, whatever their gates decide there."""
    for edit in (first, second):
        if edit.gating is None:
            continue
        if any(f"{reading.rule.site}[{reading.rule.layer}]" == where for reading in edit.gating.read()):
            return Verdict(None, f"the gate of the {edit.kind} reads this place, where the other acts")
        if edit.gating.is_graded and not (first.is_additive and second.is_additive):
            return Verdict(None, f"the strength of the {edit.kind} is decided while the model runs")
    return verdict(first, second)


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    for answer in (False, None):
        for found in verdicts:
            if found.commutes is answer:
                return found
    return verdicts[0]
