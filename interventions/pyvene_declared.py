"""What a spec declares of one of pyvene's classes, laid over a model's sizes: columns, source, parameters.

What the class then does to activations, `pyvene_class` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from subvene.interventions.pyvene_inner import make_inner
from subvene.interventions.rotation import SIZES, parametrized
from subvene.interventions.tensors import Part, Sizes, TensorError, TensorTable
from subvene.specs import PyveneSpec, SourceRef, parse_tensor_name

# Classes without parameters.
_ANY_WIDTH = frozenset(
    {
        "ZeroIntervention",
        "VanillaIntervention",
        "AdditionIntervention",
        "SubtractionIntervention",
        "CollectIntervention",
        "SkipIntervention",
    }
)


@dataclass(frozen=True, eq=False)
class DeclaredClass:
    """One of pyvene's classes, made as its spec says.

    Attributes:
        part: the columns that are edited.
        options: by which the class can be made again, JSON values.
        inner: pyvene's intervention, with its parameters.
        source: constant source activation, [width]; None where a run gives it, and for classes without one.
    """

    part: Part
    options: dict[str, Any]
    inner: torch.nn.Module
    source: torch.Tensor | None


def declared_class(spec: PyveneSpec, table: TensorTable, sizes: Sizes) -> DeclaredClass:
    """Make the class that a spec declares.

    Args:
        spec: the declaration.
        table: with its tensors.
        sizes: of the model.

    Raises:
        TensorError: a stored tensor is not there, or does not fit the class or the place.
    """
    part = _part_of(spec, sizes)
    width, source = _width_and_source(spec, part, table, sizes)
    options: dict[str, Any] = {
        "class": spec.class_name,
        "width": width,
        "low_rank_dimension": spec.low_rank_dimension,
        "latent_dim": spec.latent_dim,
        "subspaces": spec.subspaces,
        "subspace_partition": spec.subspace_partition,
    }
    # Only what departs from the whole tensor and a constant, so that older states read as they did.
    if part.columns is not None:
        options |= {"columns": part.columns, "unit": part.unit}
    if isinstance(spec.source, SourceRef):
        options["reads"] = spec.source.origin
    return DeclaredClass(part, options, _inner_of(spec, options, table), source)


def _part_of(spec: PyveneSpec, sizes: Sizes) -> Part:
    """The columns that a spec edits, and how wide its class is."""
    if spec.site is not None and spec.layer is not None:
        width = sizes.site_width(spec.site, spec.layer)
        if spec.heads is None:
            return Part(str(spec.site), width)
        return Part.of_heads(str(spec.site), spec.heads, sizes.head_dim)
    if spec.layer is not None:
        return sizes.part(str(spec.component), spec.layer, spec.heads)
    return Part(str(spec.component), None)


def _width_and_source(
    spec: PyveneSpec, part: Part, table: TensorTable, sizes: Sizes
) -> tuple[int | None, torch.Tensor | None]:
    """How wide the vectors of the class are (None: any width), and its constant source."""
    width, source = part.unit_width, None
    if (constant := spec.constant) is not None:
        if spec.site is not None and spec.layer is not None:
            shape = (part.total(sizes.site_width(spec.site, spec.layer)),)
            source = table.get(constant.key, spec.site, spec.layer, shape=shape)
        else:
            source = _by_key(table, constant.key)
            # Only the source knows how wide a module named by its path is; other classes take any width.
            width = len(source) if width is None else width
    if width is None and spec.class_name not in _ANY_WIDTH:
        width = sizes.module_width(str(spec.component))
    return width, source


def _by_key(table: TensorTable, key: str) -> torch.Tensor:
    source = table.checked(key, None)
    if source.ndim != 1:
        raise TensorError(f"{table.origin}: tensor {key!r} has shape {list(source.shape)}, expected [width]")
    return source


def _inner_of(spec: PyveneSpec, options: dict[str, Any], table: TensorTable) -> torch.nn.Module:
    """The class itself, with stored parameters or seeded ones."""
    state = {} if spec.state is None else _stored_state(table, spec)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            inner = make_inner(options, state)
        if state:
            state = parametrized(inner, state)
            # Every parameter has to be there: one that is not would stay at its random beginning.
            inner.load_state_dict(state | {n: t for n, t in inner.state_dict().items() if n in SIZES})
    except (RuntimeError, ValueError) as error:
        at = f"{table.origin}: {spec.state.key!r}" if spec.state is not None else spec.class_name
        raise TensorError(f"{at} does not fit {spec.class_name}: {error}") from error
    return inner


def _stored_state(table: TensorTable, spec: PyveneSpec) -> dict[str, torch.Tensor]:
    """The stored parameters `{key}.{parameter}` of a pyvene class, without its sizes."""
    key = "" if spec.state is None else spec.state.key
    made_for = parse_tensor_name(key)
    if made_for is not None and (made_for.site, made_for.layer) != (spec.site, spec.layer):
        raise TensorError(
            f"{table.origin}: state {key!r} was made for {made_for.site}[{made_for.layer}], and the spec "
            f"puts it at {spec.site or spec.component}[{spec.layer}]; name the same site and layer, or refit"
        )
    prefix = f"{key}."
    state = {}
    for name, tensor in table.tensors.items():
        # `key` may also be that of the source, which is named by site and layer.
        own = name.startswith(prefix) and parse_tensor_name(name) is None
        if own and (parameter := name.removeprefix(prefix)) not in SIZES:
            # Boundless subspaces keep their population as integers.
            state[parameter] = table.checked(name, None) if tensor.is_floating_point() else tensor.clone()
    if not state:
        raise TensorError(f"{table.origin}: no parameters stored as {prefix}<parameter>")
    return state
