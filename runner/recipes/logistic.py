"""The direction of a logistic regression on the activations of positive and negative texts.

`center: pairs`: on h − m, m the mean of the text's pair, without an intercept: what the library
steering-vectors does beside contrastive activation addition (github.com/steering-vectors/steering-vectors,
steering_vectors/aggregators.py, `logistic_aggregator`); the code of Rimsky et al. (github.com/nrimsky/CAA,
generate_vectors.py) has mean differences alone. `center: none`: on h with an intercept, the "probe weight
direction" of Li et al. 2023 (ITI, section 4). Both with scikit-learn's penalty ‖w‖²/2C, and brought to unit
length.
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
from subvene.specs import Contrasts, LogisticSpec

_STEPS = 10_000
"""scikit-learn's 100 are too few for the residual stream, whose columns have unlike lengths."""


def probe(
    positive: torch.Tensor, negative: torch.Tensor, spec: LogisticSpec
) -> tuple[torch.Tensor, float] | str:
    """The direction [width], float64, and the share of texts that it tells apart; or why there is none.

    Args:
        positive: [texts, width].
        negative: [texts, width].
        spec: how it is fitted.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    positive, negative = positive.double(), negative.double()
    scale = positive.norm(dim=1).mean()
    if spec.center == "pairs":
        half = (positive - negative) / 2
        positive, negative = half, -half
    rows = torch.cat([positive, negative])
    if not bool(rows.isfinite().all()):
        return "its activations are not finite"
    if is_rounding(float((rows - rows.mean(0)).norm(dim=1).mean()), float(scale)):
        return "zero, up to rounding: both sides have the same activations there"
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    fitted = LogisticRegression(
        C=spec.inverse_penalty, fit_intercept=spec.center == "none", max_iter=_STEPS
    ).fit(rows.numpy(), labels)
    weight = torch.from_numpy(fitted.coef_[0])
    if fitted.n_iter_[0] >= _STEPS:
        return f"the probe has not converged in {_STEPS} steps; lower inverse_penalty"
    return weight / weight.norm(), float(fitted.score(rows.numpy(), labels))


def fit_logistic(spec: LogisticSpec, pairs: Contrasts, anatomy: Anatomy, tokenizer: Any) -> Fitted:
    """Fit one direction per layer.

    Raises:
        SubveneError: a text has no token to read, or no layer has a direction.
        TooLongError: a text is longer than the model's context.
    """
    contrasted = Contrasted.differing(spec, pairs, anatomy, tokenizer)
    activations = contrasted.activations(spec, anatomy, tokenizer)
    probes, left_out = by_layer(activations, partial(probe, spec=spec))
    told = contrasted.told(spec, pairs) | {
        "center": spec.center,
        "inverse_penalty": spec.inverse_penalty,
        "own_accuracy_by_layer": {str(layer): round(share, 4) for layer, (_, share) in probes.items()},
    }
    vectors = {layer: direction.float() for layer, (direction, _) in probes.items()}
    return directions(spec, vectors, left_out, told)


def _check(spec: LogisticSpec, pairs: Contrasts) -> None:
    if spec.center == "pairs":
        refuse_unpaired(spec, pairs, "`center: none` takes them")


LOGISTIC = contrasted_recipe(fit_logistic, check=_check)
