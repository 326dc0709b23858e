"""The plane of Angular Steering (Vu and Nguyen 2025, arXiv:2510.26243).

As the authors' code has it (github.com/lone17/angular-steering, pytorch_pure/extract_directions.py,
`compute_steering_directions`): at every layer each text's activation is brought to unit length, both sides'
means are, too, and their difference d[l] is the layer's candidate. The first direction is the candidate with
the highest mean cosine with all candidates (`max_sim`; itself among them), or the longest (`max_norm`); the
second is the first principal axis of all candidates, their mean taken away. One plane serves all layers.

The code reads and turns two places a layer, before and after attention, and turns what the norms there put
out; here it is one place, the file's site, that is read and turned. An axis has no sign; here it points away
from the mean candidate's opposite, so that the same file gives the same angles everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import normalize

from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.activations import is_rounding
from subvene.runner.recipes.base import Fitted
from subvene.runner.recipes.contrasted import Contrasted, by_layer, contrasted_recipe, fitted_with
from subvene.runner.recipes.pca import principal_axis
from subvene.specs import AngularSpec, Contrasts, SubveneError, tensor_name


def candidate(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor | str:
    """The direction of a layer, float64 [width]; or why there is none.

    Args:
        positive: [texts, width].
        negative: [texts, width].
    """
    means = [normalize(normalize(side.double(), dim=1).mean(0), dim=0) for side in (positive, negative)]
    difference = means[0] - means[1]
    if not bool(difference.isfinite().all()):
        return "its activations are not finite"
    if is_rounding(float(difference.norm()), 1.0):
        return "zero, up to rounding: both sides have the same activations there"
    return difference


def plane(candidates: dict[int, torch.Tensor], first: str) -> tuple[int, torch.Tensor, torch.Tensor]:
    """The layer whose candidate is the first direction, that direction and the second, both of unit length.

    Args:
        candidates: layer → [width].
        first: `max_sim` or `max_norm`.
    """
    layers, stacked = list(candidates), torch.stack(list(candidates.values()))
    units = normalize(stacked, dim=1)
    rank = (units @ units.T).mean(1) if first == "max_sim" else stacked.norm(dim=1)
    best = int(rank.argmax())
    axis = principal_axis(stacked)
    return layers[best], units[best], axis if float(axis @ stacked.mean(0)) >= 0 else -axis


def fit_angular(spec: AngularSpec, pairs: Contrasts, anatomy: Anatomy, tokenizer: Any) -> Fitted:
    """Fit the plane.

    Raises:
        SubveneError: a text has no token to read, or fewer than two layers have a direction.
        TooLongError: a text is longer than the model's context.
    """
    contrasted = Contrasted.differing(spec, pairs, anatomy, tokenizer)
    activations = contrasted.activations(spec, anatomy, tokenizer)
    candidates, left_out = by_layer(activations, candidate)
    if len(candidates) < 2:
        reasons = "".join(f"; {spec.site}[{layer}]: {reason}" for layer, reason in left_out.items())
        raise SubveneError(
            f"recipe {spec.recipe}: expected directions at two layers at least, which span the plane, found "
            f"{len(candidates)}; read more layers (`layers`), or other texts{reasons}"
        )
    chosen, first, second = plane(candidates, spec.first)
    tensors = {
        tensor_name(spec.key, spec.site, layer, part): vector.float()
        for layer in candidates
        for part, vector in (("first", first), ("second", second))
    }
    norms = {str(layer): round(float(one.norm()), 4) for layer, one in candidates.items()}
    told = contrasted.told(spec, pairs) | {
        "first": spec.first,
        "layer": chosen,
        "cosine_of_the_two": round(float(first @ second), 4),
        "norm_by_layer": norms,
    }
    return fitted_with(spec, tensors, told, left_out)


ANGULAR = contrasted_recipe(fit_angular, kinds=frozenset({"rotation"}))
