"""PCA of contrast pairs, as repeng has it (github.com/vgel/repeng, repeng/extract.py, read_representations).

`center` (repeng's `pca_center`): the first principal axis of h⁺ − m and h⁻ − m of all pairs, m = (h⁺ + h⁻)/2.
`diff` (`pca_diff`, repeng's default): of h⁺ − h⁻. scikit-learn's PCA takes the mean away first, so of `diff`
what all differences have in common, the mean difference, is taken out; the rows of `center` have none.

Representation engineering (Zou et al. 2023, arXiv:2310.01405, section 3.1.1) has the PCA of differences
within pairs in random order, whose mean is near zero: the axis of `center`, which is the default here.

The sign is repeng's: by which more pairs have their positive text above their negative one; where as many
have it below, the mean difference decides. The last layer is read before the model's final norm, as all of
ours are; repeng's is read after it (the last of transformers' `hidden_states`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.activations import is_rounding
from subvene.runner.recipes.base import Fitted
from subvene.runner.recipes.contrasted import (
    Contrasted,
    by_layer,
    contrasted_recipe,
    directions,
    refuse_unpaired,
)
from subvene.specs import Contrasts, PCASpec, SubveneError


def principal_axis(rows: torch.Tensor) -> torch.Tensor:
    """The first principal axis of rows [n, width]: [width], float64, of unit length."""
    from sklearn.decomposition import PCA

    # The exact solver, whatever the size: others draw at random.
    fitted = PCA(n_components=1, svd_solver="full").fit(rows.double().numpy())
    axis: torch.Tensor = torch.from_numpy(fitted.components_[0])
    return axis


def axis_of_pairs(positive: torch.Tensor, negative: torch.Tensor, of: str) -> torch.Tensor | str:
    """The axis [width], float64, pointing to the positive side; or why there is none.

    Args:
        positive: [pairs, width].
        negative: as many.
        of: `center` or `diff`.
    """
    difference = positive.double() - negative.double()
    if not bool(difference.isfinite().all()):
        return "its activations are not finite"
    rows = torch.cat([difference, -difference]) / 2 if of == "center" else difference
    spread = float((rows - rows.mean(0)).norm(dim=1).mean())
    if is_rounding(spread, float(positive.norm(dim=1).mean())):
        return "the pairs do not differ there, or all in the same way, up to rounding"
    axis = principal_axis(rows)
    along = difference @ axis
    more = int((along > 0).sum()) - int((along < 0).sum())
    return axis * (-1.0 if (more or float(along.sum())) < 0 else 1.0)


def fit_pca(spec: PCASpec, pairs: Contrasts, anatomy: Anatomy, tokenizer: Any) -> Fitted:
    """Fit one axis per layer.

    Raises:
        SubveneError: a text has no token to read, or no layer has an axis.
        TooLongError: a text is longer than the model's context.
    """
    contrasted = Contrasted.differing(spec, pairs, anatomy, tokenizer)
    activations = contrasted.activations(spec, anatomy, tokenizer)
    found, left_out = by_layer(activations, partial(axis_of_pairs, of=spec.of))
    axes = {layer: axis.float() for layer, axis in found.items()}
    in_order = {
        str(layer): round(float(((positive - negative) @ axes[layer] > 0).double().mean()), 4)
        for layer, (positive, negative) in activations.items()
        if layer in axes
    }
    told = contrasted.told(spec, pairs) | {"of": spec.of, "pairs_in_order_by_layer": in_order}
    return directions(spec, axes, left_out, told)


def _check(spec: PCASpec, pairs: Contrasts) -> None:
    refuse_unpaired(spec, pairs, "the recipes mean_difference and logistic (`center: none`) take them")
    n_pairs = len(pairs.texts) if hasattr(pairs, "texts") else 2
    if spec.of == "diff" and n_pairs < 2:
        raise SubveneError(
            "recipe pca: fit.of: `diff` is the axis along which the differences of pairs differ from one "
            "another, and there is one pair; give more, or `of: center`"
        )


PCA = contrasted_recipe(fit_pca, check=_check)
