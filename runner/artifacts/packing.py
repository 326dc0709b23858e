"""Packing: a spec whose tensors may come from anywhere, made to find them all in one file."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from subvene.runner.edits.intervenable import Entry, IntervenableModel
from subvene.specs import InterventionSpec, TensorRef

TENSORS = "tensors.safetensors"


def self_contained(
    spec: InterventionSpec, intervenable: IntervenableModel
) -> tuple[InterventionSpec, dict[str, torch.Tensor]]:
    """A compiled spec with every reference in `TENSORS`, and the tensors, by name, as they are now.

    Two interventions that use one key for different tensors get keys of their own.
    """
    tensors: dict[str, torch.Tensor] = {}
    taken: dict[str, _Claim] = {}
    stored: list[Any] = []
    for declared, entry in zip(spec.interventions, intervenable.entries, strict=True):
        wanted = declared.wanted_key or entry.name
        for key in itertools.chain([wanted], (f"{wanted}_{n}" for n in itertools.count(2))):
            own = _stored(key, intervenable, entry)
            same = all(torch.equal(tensors[name], own[name]) for name in tensors.keys() & own.keys())
            claim = _Claim(frozenset(own), declared.reads_whole_key)
            if same and claim.goes_with(taken.get(key)):
                break
        taken[key] = claim | taken.get(key)
        tensors |= own
        stored.append(declared.model_copy(update=declared.stored_refs(TENSORS, key, own)))
    fields = {name: getattr(spec, name) for name in InterventionSpec.model_fields}
    return InterventionSpec(**fields | {"interventions": tuple(stored)}), tensors


@dataclass(frozen=True)
class _Claim:
    """What is stored under a key, and whether a reader of the key takes all of it for its own."""

    names: frozenset[str]
    whole: bool

    def goes_with(self, other: _Claim | None) -> bool:
        return other is None or self.names == other.names or not (self.whole or other.whole)

    def __or__(self, other: _Claim | None) -> _Claim:
        return self if other is None else _Claim(self.names | other.names, self.whole or other.whole)


def _stored(key: str, intervenable: IntervenableModel, entry: Entry) -> dict[str, torch.Tensor]:
    own: dict[str, torch.Tensor] = {}
    for place, pyvene_key in zip(entry.sites, entry.keys, strict=True):
        site, _, layer = place.rpartition("[")
        index = int(layer.rstrip("]")) if site and place.endswith("]") else None
        own |= intervenable.interventions[pyvene_key].stored(key, site if index is not None else place, index)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}


def with_file(spec: InterventionSpec, file: str | None) -> InterventionSpec:
    """The spec with every tensor reference in `file`."""
    interventions = tuple(
        declared.model_copy(
            update={name: TensorRef(file=file, key=ref.key) for name, ref in declared.tensor_refs()}
        )
        for declared in spec.interventions
    )
    return spec.model_copy(update={"interventions": interventions})
