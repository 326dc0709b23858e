"""Between an experiment and its engine: rows in the engine's names, receipts in the experiment's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from subvene.runner.edits.not_finite import check_finite
from subvene.runner.edits.receipt import InterventionReceipt, Receipt, merged
from subvene.runner.engines.collecting import Collected
from subvene.runner.engines.errors import EngineError
from subvene.runner.engines.fingerprints import does
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.passes.elsewhere import SpanMeans


@dataclass(frozen=True)
class Held:
    """An artifact of an engine: its name there, and those of its interventions, in their order."""

    name: str
    interventions: tuple[str, ...]


def held_for(m: IntervenedModel, artifacts: Mapping[str, Held], folder: Path, engine: str) -> Held:
    """The artifact that does what a model's interventions do.

    Args:
        m: the intervened model.
        artifacts: by the hash of what they do (`fingerprints.does`).
        folder: where tensor files that specs name are looked for.
        engine: what errors call it.

    Raises:
        EngineError: there is none, or a request could not say the strengths.
    """
    if any(isinstance(one.strength, tuple) for one in m.spec.interventions):
        raise EngineError(f"engine: {engine}: one strength a row is declared; a request has one")
    if any(one.is_gated for one in m.spec.interventions):
        raise EngineError(f"engine: {engine}: a gate is declared, of which engines give no receipt")
    what = does(m.spec, m.tensors, folder)
    if (held := artifacts.get(what["sha256"])) is None:
        names = ", ".join(one.name for one in artifacts.values()) or "none"
        raise EngineError(
            f"engine: {engine} holds no artifact that does what {', '.join(what['interventions'])} "
            f"here does (all but names and strengths has to be alike); "
            f"it holds: {names}. Save it as an artifact and serve that"
        )
    return held


def wishes(
    m: IntervenedModel, held: Held | None, strengths: Mapping[str, float] | None = None
) -> list[dict[str, Any]] | None:
    """What a request asks for; None: nothing is edited.

    Args:
        m: the intervened model.
        held: the artifact that does it.
        strengths: by the model's names, those not named are 0; None: what the spec says.
    """
    if held is None:
        return None
    said = {}
    for entry, theirs in zip(m.intervenable.entries, held.interventions, strict=True):
        own = float(m.intervenable.interventions[entry.keys[0]].strength)
        said[theirs] = own if strengths is None else float(strengths.get(entry.name, 0.0))
    return [{"artifact": held.name, "strengths": said}]


def means_of(
    found: Sequence[Mapping[str, Collected]], layers: Sequence[int], places: Sequence[str]
) -> SpanMeans:
    """What was collected of some texts, as recipes and measures read it.

    Args:
        found: of each text, by site.
        layers: of the sites.
        places: what the sites are called, in the order of the layers.

    Raises:
        NotFiniteError: some of it is not finite.
    """
    vectors, norms = {}, {}
    for layer, name in zip(layers, places, strict=True):
        vectors[layer] = torch.from_numpy(np.stack([one[name].mean for one in found]))
        norms[layer] = torch.tensor([one[name].norm for one in found], dtype=torch.float64)
        check_finite(norms[layer], f"activations at {name}")
    return SpanMeans(vectors, norms)


# What only the runner under transformers measures.
_UNMEASURED: dict[str, Any] = {
    "reached": True,
    "calls": None,
    "max_relative": None,
    "mean_strength": None,
}
_TOLD = InterventionReceipt.__dataclass_fields__.keys()


def receipt_of(m: IntervenedModel, told: Sequence[Mapping[str, Any]]) -> Receipt:
    """A request's receipt, under the names of the experiment.

    Args:
        m: the intervened model.
        told: by the engine, of each intervention.
    """
    return Receipt(
        tuple(
            InterventionReceipt(
                **_UNMEASURED
                | {key: value for key, value in one.items() if key in _TOLD}
                | {
                    "name": entry.name,
                    "positions": declared.positions,
                    "sites": tuple(one["sites"]),
                    "strengths": tuple(one["strengths"]),
                }
            )
            for entry, declared, one in zip(m.intervenable.entries, m.spec.interventions, told, strict=True)
        )
    )


def together(receipts: Sequence[Receipt]) -> list[Receipt]:
    """Receipts of requests as that of one batch, its strengths one a row unless they are all alike."""
    whole = []
    for receipt in merged(receipts, same_rows=False):
        for i, one in enumerate(receipt):
            strengths = [s for told in receipts for s in told[i].strengths]
            alike = strengths[:1] if len(set(strengths)) == 1 else strengths
            whole.append(replace(one, strengths=tuple(alike)))
    return [Receipt(tuple(whole))] if receipts else []
