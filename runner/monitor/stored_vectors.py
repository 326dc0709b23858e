"""The vectors at `block_output` that a model brings with it, in its artifact and its interventions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from subvene.runner.artifacts.packing import self_contained
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.monitor.projection import SITE, ByVector, ProjectionError
from subvene.specs import parse_tensor_name


def stored_vectors(m: IntervenedModel) -> ByVector:
    """Every vector at `block_output` that an artifact holds or an intervention uses, by key and layer."""
    return _vectors_among({**m.tensors, **_used(m)})


def used_vectors(m: IntervenedModel) -> ByVector:
    """The vectors at `block_output` that the interventions use, by key and layer."""
    return _vectors_among(_used(m))


def _vectors_among(names: Mapping[str, torch.Tensor]) -> ByVector:
    found: ByVector = {}
    parsed = [(name, parse_tensor_name(name)) for name in names]
    for name, parts in sorted(parsed, key=lambda pair: pair[1].layer if pair[1] else -1):
        if parts and parts.site == SITE and parts.part is None and names[name].ndim == 1:
            found.setdefault(parts.key, {})[parts.layer] = names[name]
    return found


def chosen_vectors(
    m: IntervenedModel, keys: Sequence[str] = (), layers: Sequence[int] | Literal["all"] | None = None
) -> ByVector:
    """Some of the stored vectors.

    Args:
        m: the model with its tensors.
        keys: which, each `KEY` or `KEY@LAYER`; none: those that the interventions use at `block_output`.
        layers: which; None: those at which the interventions use the key; `all`: all that are stored.

    Raises:
        ProjectionError: there is no such vector.
    """
    stored = stored_vectors(m)
    if not stored:
        raise ProjectionError(
            f"there is no vector at {SITE} to project on: neither the interventions nor the artifact have one"
        )
    used: dict[str, list[int]] = defaultdict(list)
    for name in _used(m):
        parts = parse_tensor_name(name)
        if parts and parts.layer in stored.get(parts.key, {}) and parts.site == SITE and parts.part is None:
            used[parts.key].append(parts.layer)
    chosen: ByVector = {}
    for wanted in keys or list(used) or list(stored):
        key, at, number = wanted.partition("@")
        if key not in stored:
            raise ProjectionError(f"no vector {key!r} at {SITE}; there is: {', '.join(sorted(stored))}")
        there = stored[key]
        if at:
            if not number.isdecimal():
                raise ProjectionError(f"{wanted!r}: expected KEY@LAYER, a layer like 14")
            which: Sequence[int] = [int(number)]
        elif layers is None:
            which = used.get(key) or (list(there) if len(there) == 1 else [])
            if not which:
                raise ProjectionError(
                    f"no intervention uses {key!r} at {SITE}, so no layer is the obvious one; "
                    f"say which: {_listed(there)}, or all"
                )
        else:
            which = list(there) if layers == "all" else layers
        for layer in which:
            if layer not in there:
                raise ProjectionError(f"no vector {key!r} at {SITE}[{layer}]; there is: {_listed(there)}")
            chosen.setdefault(key, {})[layer] = there[layer]
    return chosen


def _used(m: IntervenedModel) -> dict[str, torch.Tensor]:
    """The tensors that the interventions use, by full name."""
    return self_contained(m.spec, m.intervenable)[1] if m.spec.interventions else {}


def _listed(layers: Mapping[int, Any]) -> str:
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, sorted(layers)))}"
