"""Packing: a spec whose tensors may come from anywhere, made to find them all in one file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from subvene.runner.edits.intervenable import Entry, IntervenableModel
from subvene.specs import InterventionSpec, TensorRef
from subvene.specs.gates import Gate, MeasuredGate

TENSORS = "tensors.safetensors"


def self_contained(
    spec: InterventionSpec, intervenable: IntervenableModel
) -> tuple[InterventionSpec, dict[str, torch.Tensor]]:
    """A compiled spec with every reference in `TENSORS`, and the tensors, by name, as they are now.

    Two interventions that use one key for different tensors get keys of their own.
    """
    packed = _Packed()
    stored: list[Any] = []
    for declared, entry in zip(spec.interventions, intervenable.entries, strict=True):
        wanted = declared.wanted_key or entry.name
        stored_as = partial(_stored, intervenable=intervenable, entry=entry)
        key, own = packed.put(wanted, stored_as, declared.reads_whole_key)
        update: dict[str, Any] = dict(declared.stored_refs(TENSORS, key, own))
        if declared.when is not None:
            update["when"] = _packed_gate(packed, declared.when, intervenable, entry)
        stored.append(declared.model_copy(update=update))
    fields = {name: getattr(spec, name) for name in InterventionSpec.model_fields}
    return InterventionSpec(**fields | {"interventions": tuple(stored)}), packed.tensors


class _Packed:
    """Tensors by name, and by which key they are asked for."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._taken: dict[str, _Claim] = {}

    def put(
        self, wanted: str, stored: Callable[[str], dict[str, torch.Tensor]], whole: bool
    ) -> tuple[str, dict[str, torch.Tensor]]:
        """Put tensors under a key: the wanted one, or one made of it where others stand under that.

        Args:
            wanted: the key.
            stored: the tensors by full name, for a key.
            whole: whether who reads the key takes all that is under it for its own.
        """
        for key in itertools.chain([wanted], (f"{wanted}_{n}" for n in itertools.count(2))):
            own = stored(key)
            same = all(
                torch.equal(self.tensors[name], own[name]) for name in self.tensors.keys() & own.keys()
            )
            claim = _Claim(frozenset(own), whole)
            if same and claim.goes_with(self._taken.get(key)):
                break
        self._taken[key] = claim | self._taken.get(key)
        self.tensors |= own
        return key, own


def _packed_gate(packed: _Packed, when: Gate, intervenable: IntervenableModel, entry: Entry) -> Gate:
    """A gate whose tensors are packed; in the order in which it is read."""
    gating = intervenable.interventions[entry.keys[0]].gating
    readings = iter([reading for reading in gating.read() if len(reading.measurement.vector)])

    def put(gate: MeasuredGate, ref: TensorRef) -> TensorRef:
        reading = next(readings)
        key, _ = packed.put(ref.key, lambda key: _on_cpu(reading.stored(key)), gate.layer is None)
        return ref.model_copy(update={"file": TENSORS, "key": key})

    return when.with_refs(put)


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
    return _on_cpu(own)


def _on_cpu(own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}


def with_file(spec: InterventionSpec, file: str | None) -> InterventionSpec:
    """The spec with every tensor reference in `file`."""
    interventions = []
    for declared in spec.interventions:
        update: dict[str, Any] = {
            name: ref.model_copy(update={"file": file}) for name, ref in declared.tensor_refs()
        }
        if declared.when is not None:
            update["when"] = declared.when.with_refs(lambda _, ref: ref.model_copy(update={"file": file}))
        interventions.append(declared.model_copy(update=update))
    return spec.model_copy(update={"interventions": tuple(interventions)})
