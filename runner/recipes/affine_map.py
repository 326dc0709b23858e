"""Maps from the activations of one kind of texts to those of another.

`linear_act` and `mean_act`: Linear-AcT and Mean-AcT (Rodriguez et al. 2024, arXiv:2410.23054, section 3), as
the authors' code has them (github.com/apple/ml-act, act/optimal_transport/ot_maps.py `solve_ot_1d` and
archs.py `LinearProj.optimize`; act/hooks/transport.py `LinearOTHook`, `OnlyMeanHook`): of every column, both
sides are sorted, and y ≈ w·x + b is fitted to the sorted values. `gaussian` is `GaussianOTHook`: w = s⁺/s⁻,
b = m⁺ − w·m⁻; columns that spread less than 10⁻⁴ on either side are left alone. Where a column has one value,
w is not determined: here it is 1 (the code adds noise of 10⁻⁸). Maps are fitted at each layer by itself, on
the untouched model; the paper also has them fitted one after the other, each on what the earlier ones leave.

`least_squares`: INCLINE (Wang et al. 2024, arXiv:2410.12462; github.com/weixuan-wang123/INCLINE,
intervention.py): W = argmin Σ‖W·h⁻ − h⁺‖² without a constant, the shortest solution (`numpy.linalg.lstsq`).
The code then adds σ·W·h to h; `affine` moves h towards W·h.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes.base import Fitted
from subvene.runner.recipes.contrasted import (
    Contrasted,
    by_layer,
    contrasted_recipe,
    fitted_with,
    refuse_unpaired,
)
from subvene.specs import AffineMapSpec, ContrastPrompts, Contrasts, SubveneError, tensor_name
from subvene.specs.recipes.affine_map import FORMS

_FLAT = 1e-4
"""ml-act's `std_eps`."""


def map_of(
    negative: torch.Tensor, positive: torch.Tensor, spec: AffineMapSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """W, [width] or [width, width], and b, [width], float64.

    Args:
        negative: x, [texts, width].
        positive: y, [texts, width].
        spec: how.
    """
    x, y = negative.double(), positive.double()
    if spec.by == "least_squares":
        return _least_squares(x, y, spec.around), x.new_zeros(x.shape[1])
    shift = y.mean(0) - x.mean(0)
    if spec.by == "mean_act":
        weight = torch.ones_like(shift)
    elif spec.by == "gaussian":
        spreads = x.std(0), y.std(0)
        moved = (spreads[0] > _FLAT) & (spreads[1] > _FLAT)
        weight = torch.where(moved, spreads[1] / spreads[0], 1.0)
        return weight, torch.where(moved, y.mean(0) - weight * x.mean(0), 0.0)
    else:
        x, y = x.sort(0).values - x.mean(0), y.sort(0).values - y.mean(0)
        varies = (x**2).sum(0) > 0
        weight = torch.where(varies, (x * y).sum(0) / (x**2).sum(0), 1.0)
    return weight, positive.double().mean(0) - weight * negative.double().mean(0)


def _least_squares(x: torch.Tensor, y: torch.Tensor, around: str) -> torch.Tensor:
    """W [width, width] with x·Wᵀ nearest to y."""
    identity = torch.eye(x.shape[1], dtype=torch.float64)
    start = identity if around == "identity" else torch.zeros_like(identity)
    # The driver that numpy has, too: the shortest of several solutions.
    found = torch.linalg.lstsq(x, y - x @ start.T, driver="gelsd").solution
    weight: torch.Tensor = start + found.T
    return weight


def fit_affine_map(spec: AffineMapSpec, pairs: Contrasts, anatomy: Anatomy, tokenizer: Any) -> Fitted:
    """Fit one map per layer.

    Raises:
        SubveneError: a text has no token to read, or no layer's activations are finite.
        TooLongError: a text is longer than the model's context.
    """
    contrasted = Contrasted.differing(spec, pairs, anatomy, tokenizer)
    activations = contrasted.activations(spec, anatomy, tokenizer)
    maps, left_out = by_layer(activations, partial(_map_of_finite, spec=spec))
    if not maps:
        raise SubveneError(f"recipe {spec.recipe}: no layer's activations at {spec.site} are finite")
    tensors: dict[str, torch.Tensor] = {}
    distances = {}
    for layer, (weight, bias) in maps.items():
        positive, negative = activations[layer]
        for part, tensor in (("weight", weight), ("bias", bias)):
            tensors[tensor_name(spec.key, spec.site, layer, part)] = tensor.float()
        distances[str(layer)] = _distance(negative.double(), positive.double(), weight, bias)
    told = contrasted.told(spec, pairs) | {
        "by": spec.by,
        "around": spec.around,
        "form": FORMS[spec.by],
        "means_apart_by_layer": distances,
    }
    return fitted_with(spec, tensors, told, left_out)


def _map_of_finite(
    positive: torch.Tensor, negative: torch.Tensor, spec: AffineMapSpec
) -> tuple[torch.Tensor, torch.Tensor] | str:
    if not all(bool(side.isfinite().all()) for side in (positive, negative)):
        return "its activations are not finite"
    return map_of(negative, positive, spec)


def _distance(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, float]:
    """How far the means of both sides are apart, before and after the map."""
    mapped = (x * weight if weight.ndim == 1 else x @ weight.T) + bias
    return {
        "before": round(float((y.mean(0) - x.mean(0)).norm()), 4),
        "after": round(float((y.mean(0) - mapped.mean(0)).norm()), 4),
    }


def _check(spec: AffineMapSpec, pairs: Contrasts) -> None:
    """Refuse lists where pairs are needed, and lists of which one is longer where both are sorted.

    Raises:
        SubveneError: saying what takes them.
    """
    if spec.by == "least_squares":
        refuse_unpaired(spec, pairs, "the other ways of fitting (`by`) take them")
    if spec.by == "linear_act" and isinstance(pairs, ContrastPrompts):
        counts = len(pairs.side("positive")), len(pairs.side("negative"))
        if counts[0] != counts[1]:
            raise SubveneError(
                f"recipe {spec.recipe}: fit.pairs.prompts: expected as many positive prompts as negative "
                f"ones, as the k-th smallest are matched, found {counts[0]} and {counts[1]}; leave some out "
                "(`limit`), or take `by: gaussian`"
            )


AFFINE_MAP = contrasted_recipe(
    fit_affine_map, check=_check, kinds=frozenset({"affine"}), fields=lambda spec: {"form": FORMS[spec.by]}
)
