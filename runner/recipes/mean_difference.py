"""Mean difference of contrast pairs (contrastive activation addition, Rimsky et al. 2024; persona vectors).

v[l] = mean over pairs of (ā⁺[l] − ā⁻[l]), ā the mean (or last) activation of the contrasted tokens; of two
lists of prompts, the mean over one minus the mean over the other.
"""

from __future__ import annotations

from typing import Any

from subvene.runner.data.text import pad_id_of
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.activations import weighted_sums
from subvene.runner.recipes.base import Fitted, layers_of
from subvene.runner.recipes.contrasted import Contrasted, contrasted_recipe, directions
from subvene.specs import Contrasts, MeanDifferenceSpec


def fit_mean_difference(
    spec: MeanDifferenceSpec, pairs: Contrasts, anatomy: Anatomy, tokenizer: Any
) -> Fitted:
    """Fit one vector per layer.

    Args:
        spec: the recipe; `pairs` in it have been read into `pairs`.
        pairs: texts against texts, system prompts against system prompts, or prompts against prompts.
        anatomy: of the model.
        tokenizer: the model's.

    Raises:
        SubveneError: a contrasted text is empty or cut away by `max_tokens`, or no layer has a direction.
        TooLongError: a text is longer than the model's context.
    """
    # 1. Both sides of every pair, tokenised with the contrasted tokens marked.
    contrasted = Contrasted.differing(spec, pairs, anatomy, tokenizer)
    # 2. One forward pass over all of them; a positive text adds to the sum, a negative one subtracts.
    sums = weighted_sums(
        anatomy,
        spec.site,
        layers_of(spec.layers, anatomy.sizes),
        contrasted.texts,
        contrasted.weights,
        pad_id=pad_id_of(tokenizer),
        batch_size=spec.batch_size,
        description=f"fitting {spec.key}",
    )
    # 3. Each layer's vector under its full name, and where it came from.
    left_out = sums.degenerate()
    vectors = {layer: vector for layer, vector in sums.vectors.items() if layer not in left_out}
    norms = {str(layer): round(float(v.norm()), 4) for layer, v in vectors.items()}
    return directions(spec, vectors, left_out, contrasted.told(spec, pairs) | {"norm_by_layer": norms})


MEAN_DIFFERENCE = contrasted_recipe(fit_mean_difference)
