"""Geometry of persona vectors: how they lie to each other, and how well a mean stands for its pairs.

Everything is computed in float64 and given as JSON values; what is undefined, because a vector is zero, is
None and never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

import torch

from subvene.specs import SubveneError

Vectors = Mapping[str, Mapping[int, torch.Tensor]]
Matrix = list[list[float | None]]


class Between(TypedDict):
    """How vectors lie to each other, JSON values.

    `layers`: what the lists per layer are of; `traits`: their order in `cosine_at_layer`, which is at
    `layer`; `cosine_by_layer`: by pair, as `a|b`.
    """

    layer: int
    layers: list[int]
    traits: list[str]
    cosine_at_layer: Matrix
    cosine_by_layer: dict[str, list[float | None]]
    across_layers: dict[str, Matrix]
    norms: dict[str, list[float]]
    explained_variance: dict[str, list[float | None]]


def geometry(
    vectors: Vectors, layer: int, *, explained_variance: Mapping[str, Sequence[float | None]]
) -> Between:
    """Cosines between traits and between layers, and norms.

    Args:
        vectors: by trait and layer, each [width].
        layer: where traits are compared in `cosine_at_layer`.
        explained_variance: by trait, one value a layer, as `explained_variance_by_layer` gives it.

    Raises:
        SubveneError: traits differ in their layers or widths, a vector has NaN or infinity, `layer` is not
            among the layers, or an explained variance is missing.
    """
    layers = _check(vectors, layer, explained_variance)
    names = list(vectors)
    # [layers, width] for each trait, of unit length, or zero where the vector is.
    stacks = {name: _stack(vectors[name], layers) for name in names}
    norms = {name: torch.linalg.vector_norm(stack, dim=-1) for name, stack in stacks.items()}
    units = {
        name: stack / norms[name].clamp(min=torch.finfo(torch.float64).tiny).unsqueeze(-1)
        for name, stack in stacks.items()
    }
    here = layers.index(layer)
    at_layer = torch.stack([units[name][here] for name in names])
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return {
        "layer": layer,
        "layers": layers,
        "traits": names,
        "cosine_at_layer": _cosines(at_layer, [float(norms[name][here]) > 0 for name in names]),
        "cosine_by_layer": {
            f"{a}|{b}": [
                _cosine(float(value), bool(norms[a][i] > 0 and norms[b][i] > 0))
                for i, value in enumerate((units[a] * units[b]).sum(-1))
            ]
            for a, b in pairs
        },
        "across_layers": {name: _cosines(units[name], (norms[name] > 0).tolist()) for name in names},
        "norms": {name: norms[name].tolist() for name in names},
        "explained_variance": {name: list(explained_variance[name]) for name in names},
    }


def explained_variance(differences: torch.Tensor) -> float | None:
    """The share of the pairs' differences that lies along their mean: Σ⟨d, v̂⟩² / Σ‖d‖², v̂ along the mean.

    It is 1 where all pairs differ in the same direction; of n differences that have nothing in common it is
    about 1/n. It needs every pair at once: v̂ is known only at the end, so a running sum cannot give it
    without Σ d dᵀ, which is width × width.

    Args:
        differences: [pairs, width].

    Returns:
        0 to 1; None if there is no pair, or their differences or the mean of them are zero.

    Raises:
        SubveneError: the differences are no matrix, or have NaN or infinity.
    """
    if differences.ndim != 2:
        raise SubveneError(
            f"explained variance: expected differences [pairs, width], found {list(differences.shape)}"
        )
    exact = _wide(differences)
    if not bool(torch.isfinite(exact).all()):
        raise SubveneError("explained variance: a difference has NaN or infinity; check the activations")
    # Scaled, so that neither tiny nor huge activations leave float64 when squared.
    largest = float(exact.abs().max()) if exact.numel() else 0.0
    if largest == 0.0:
        return None
    exact = exact / largest
    mean = exact.mean(0)
    length = float(torch.linalg.vector_norm(mean))
    # Differences that cancel leave rounding noise, whose direction says nothing.
    if length <= exact.shape[0] * torch.finfo(torch.float64).eps:
        return None
    share = float((exact @ (mean / length)).square().sum() / exact.square().sum())
    return min(max(share, 0.0), 1.0)


def explained_variance_by_layer(positive: torch.Tensor, negative: torch.Tensor) -> list[float | None]:
    """`explained_variance` of positive minus negative at each layer; one layer at a time is float64.

    Args:
        positive: mean activations [pairs, layers, width] of the positive responses.
        negative: of the negative responses, pair by pair.

    Raises:
        SubveneError: the two differ in shape.
    """
    if positive.ndim != 3 or positive.shape != negative.shape:
        raise SubveneError(
            "explained variance: expected positive and negative means of the same shape "
            f"[pairs, layers, width], found {list(positive.shape)} and {list(negative.shape)}"
        )
    return [
        explained_variance(_wide(positive[:, i]) - _wide(negative[:, i])) for i in range(positive.shape[1])
    ]


def _wide(values: torch.Tensor) -> torch.Tensor:
    """In float64, on the CPU: not every device has it."""
    return values.to("cpu", torch.float64)


def _cosine(value: float, defined: bool) -> float | None:
    return min(max(value, -1.0), 1.0) if defined else None


def _cosines(units: torch.Tensor, defined: Sequence[bool]) -> Matrix:
    found = (units @ units.T).tolist()
    return [
        [
            # A vector lies along itself, whatever rounding says.
            _cosine(1.0 if i == j else value, defined[i] and defined[j])
            for j, value in enumerate(row)
        ]
        for i, row in enumerate(found)
    ]


def _stack(by_layer: Mapping[int, torch.Tensor], layers: Iterable[int]) -> torch.Tensor:
    return torch.stack([_wide(by_layer[layer].detach()) for layer in layers])


def _check(vectors: Vectors, layer: int, explained: Mapping[str, Sequence[float | None]]) -> list[int]:
    if not vectors:
        raise SubveneError("geometry: expected the vectors of at least one trait, found none")
    first = next(iter(vectors))
    layers = sorted(vectors[first])
    if layer not in layers:
        raise SubveneError(f"geometry: expected a layer that {first!r} has a vector of, found {layer}")
    width = vectors[first][layer].shape
    for name, by_layer in vectors.items():
        if sorted(by_layer) != layers:
            raise SubveneError(
                f"geometry: expected vectors of {name!r} at the layers of {first!r} {layers}, "
                f"found {sorted(by_layer)}"
            )
        for at, vector in by_layer.items():
            where = f"the vector of {name!r} at layer {at}"
            if vector.ndim != 1 or vector.shape != width:
                raise SubveneError(
                    f"geometry: expected {where} to be {list(width)} as the others are, "
                    f"found {list(vector.shape)}"
                )
            if not bool(torch.isfinite(vector).all()):
                raise SubveneError(f"geometry: {where} has NaN or infinity; fit it again")
        shares = explained.get(name)
        if shares is None or len(shares) != len(layers):
            raise SubveneError(
                f"geometry: expected an explained variance of {name!r} for each of {len(layers)} layers, "
                f"found {'none' if shares is None else len(shares)}"
            )
        if any(share is not None and not math.isfinite(share) for share in shares):
            raise SubveneError(f"geometry: an explained variance of {name!r} is not finite")
    return layers
