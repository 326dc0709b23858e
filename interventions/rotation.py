"""Rotations as artifacts have them: the matrix itself, in place of what pyvene makes it of.

pyvene's rotated classes keep a matrix as torch's orthogonal parametrization does: a whole orthogonal base and
the parameters of what it is multiplied by. Of a subspace of one direction in a width of 4,096 that are 16
million numbers. What it says is the matrix, [width, rank], with orthonormal columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from subvene.interventions.tensors import TensorError

ROTATION = "rotation"
# pyvene registers these sizes as state; here they follow from the spec, so they are neither stored nor read.
SIZES = ("embed_dim", "interchange_dim")
_LAYER = "rotate_layer."
_ORIGINAL = f"{_LAYER}parametrizations.weight.original"
_BASE = f"{_LAYER}parametrizations.weight.0.base"
# How far RᵀR may be from the identity, for matrices that a file has in float16.
_ORTHONORMAL = 1e-2


def rotation_of(inner: Any) -> torch.Tensor | None:
    """The rotation of one of pyvene's interventions, [width, rank]; None for a class without."""
    layer = getattr(inner, "rotate_layer", None)
    return None if layer is None else layer.weight


def plain_state(inner: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state of one of pyvene's interventions, its rotation as a matrix."""
    state = {name: value for name, value in inner.state_dict().items() if not name.startswith(_LAYER)}
    rotation = rotation_of(inner)
    return state if rotation is None else state | {ROTATION: rotation.detach()}


def stored_state(inner: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What an artifact has of one of pyvene's interventions: its `plain_state` without the sizes."""
    return {name: value for name, value in plain_state(inner).items() if name not in SIZES}


def parametrized(inner: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state as pyvene's class loads it; its matrix is then the given one to the last bit.

    Raises:
        TensorError: the rotation has another shape than the class needs, or its columns are not orthonormal.
    """
    found = dict(state)
    if (rotation := found.pop(ROTATION, None)) is None:
        return found
    own = rotation_of(inner)
    if own is None or own.shape != rotation.shape:
        expected = "none" if own is None else list(own.shape)
        raise TensorError(f"{ROTATION}: expected {expected}, found {list(rotation.shape)}")
    width, rank = rotation.shape
    gram = rotation.double().T @ rotation.double()
    off = float((gram - torch.eye(rank, dtype=gram.dtype)).abs().max())
    if off > _ORTHONORMAL:
        raise TensorError(
            f"{ROTATION}: expected orthonormal columns, and RᵀR is off the identity by {off:.2g}"
        )
    generator = torch.Generator().manual_seed(0)
    others = torch.randn(width, width - rank, generator=generator)
    base = torch.linalg.qr(torch.cat([rotation, others], dim=1))[0]
    base[:, :rank] = rotation
    # What torch's parametrization makes of this is the identity.
    original = torch.zeros(width, rank)
    original.diagonal().fill_(-1)
    return found | {_ORIGINAL: original, _BASE: base}


def random_rotation(width: int, rank: int, generator: torch.Generator) -> torch.Tensor:
    """A matrix with orthonormal columns, [width, rank], uniform over all of them."""
    q, r = torch.linalg.qr(torch.randn(width, rank, generator=generator))
    # QR alone prefers some signs (Mezzadri, 2007).
    signs: torch.Tensor = q * r.diagonal().sign()
    return signs


def swapped(
    inner: torch.nn.Module, base: torch.Tensor, source: torch.Tensor, subspaces: Sequence[int] | None
) -> torch.Tensor:
    """What one of pyvene's interventions makes of some vectors.

    Args:
        inner: the intervention.
        base: [vectors, width].
        source: as many.
        subspaces: that are swapped; None: all of them.
    """
    # pyvene's classes write into their argument.
    chosen = None if subspaces is None else [list(subspaces)] * len(base)
    edited: torch.Tensor = inner(base.clone(), source, chosen)
    return edited
