"""Interventions as constants, for consumers that add a vector at every token and can do nothing else."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from subvene.runner.exchange.exports.affine import affine_of
from subvene.runner.exchange.exports.approximation import MEAN_SHIFT, mean_shifts
from subvene.runner.exchange.exports.base import EXACT, KEEP, Verdict, positions_in_words
from subvene.runner.exchange.exports.facts import Facts
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import AnyIntervention


@dataclass(frozen=True)
class Addition:
    """A constant at one place of the model.

    Attributes:
        name: of the intervention that it stands for.
        kind: of that intervention.
        site: where it is added.
        layer: 0-based block.
        vector: float64 [width of the site], the strength included.
    """

    name: str
    kind: str
    site: str
    layer: int
    vector: torch.Tensor


def judge_added(declared: AnyIntervention, facts: Facts, consumer: str) -> Verdict:
    """What a consumer makes of an intervention if it can only add a constant at every token.

    Args:
        declared: the intervention.
        facts: what its class says of it.
        consumer: its name, for the reasons.
    """
    if not facts.is_constant:
        what = "its strength" if facts.monitored else "what it adds"
        return Verdict(
            "approximate",
            f"{what} depends on the activation, and {consumer} adds a constant at every token: "
            f"{MEAN_SHIFT}, is written in its place",
            facts.nearest,
        )
    if declared.positions != "all":
        return Verdict(
            "approximate",
            f"positions {positions_in_words(declared)}: {consumer} adds the vector at every token, and that "
            "is what is written",
            f"`positions: all` can be written exactly, and is another intervention; or {KEEP}",
        )
    return EXACT


def additions(m: IntervenedModel, without: Collection[str] = ()) -> list[Addition]:
    """What the interventions add: constants as they stand, and the mean of what depends on the activation.

    Args:
        m: the model; interventions of strength zero are left out.
        without: names of interventions that are left out, too.
    """
    means: dict[str, torch.Tensor] = {}
    found = []
    for declared, entry in zip(m.spec.interventions, m.intervenable.entries, strict=True):
        if declared.strength == 0 or entry.name in without:
            continue
        for place, key in zip(entry.sites, entry.keys, strict=True):
            edit = m.intervenable.interventions[key]
            affine = affine_of(edit)
            if affine is None or not affine.is_constant:
                means = means or mean_shifts(m)
                vector = means[key]
            else:
                vector = affine.d
            site, layer = parsed_place(place)
            found.append(Addition(entry.name, declared.kind, site, layer, vector))
    return found


def parsed_place(place: str) -> tuple[str, int]:
    """`block_output[3]` as its site and its layer."""
    site, _, index = place.rpartition("[")
    return site, int(index.rstrip("]"))
