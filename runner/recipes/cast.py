"""CAST: when an intervention is to act, found from prompts for which it is, and prompts for which it is not.

Lee et al. 2024, "Programming Refusal with Conditional Activation Steering" (arXiv:2409.05907), and its code,
github.com/IBM/activation-steering. A condition vector is made at every layer; the gate reads
cos(h, tanh(proj_c h)) of the prompt's mean activation, and layer, threshold and side (`above`, `below`) are
those of the highest F1.

Where paper and code differ, and what is done here:

* vector: the paper centres both kinds by one mean and takes the first principal axis; the code's default
  (`pca_pairwise`) centres each pair by its own. The paper's is taken: prompts of two kinds are no pairs.
* the place that is read: the code extracts at the outputs of blocks and compares at their inputs. One site
  for both is taken, the output by default.
* the mean: the code's is over all tokens. Here the first one, an attention sink, is left out, as always.
* thresholds: the code has a grid of 0.01 from 0 to 1. Every threshold between two neighbouring readings is
  tried, which no grid surpasses, and of those with the highest F1 the middle of the widest gap is taken.
* texts: the code searches on whatever it is given. Here, on texts that the vectors were not made of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from subvene.interventions import Sizes
from subvene.interventions.gating import Side, side_part, threshold_part
from subvene.interventions.measurements import MEASUREMENTS
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.activations import is_rounding
from subvene.runner.recipes.base import FOR_GATES, Fitted, Reach, Recipe, layers_of
from subvene.runner.recipes.contrasted import (
    Contrasted,
    by_layer,
    fitted_with,
    pairs_sha256,
    read_declared,
    read_given,
    sides_count,
)
from subvene.runner.recipes.pca import principal_axis
from subvene.specs import CastSpec, Contrasts, SubveneError, tensor_name


class Choice(NamedTuple):
    """A threshold on one layer's readings.

    Attributes:
        f1: of the readings that it was chosen by.
        gap: between the readings on its two sides, in standard deviations of all of them.
        threshold: the middle of that gap.
        side: on which side of it the gate is open.
    """

    f1: float
    gap: float
    threshold: float
    side: Side


def chosen_threshold(positive: torch.Tensor, negative: torch.Tensor) -> Choice | None:
    """The threshold and side of the highest F1, and among those the widest gap.

    Args:
        positive: readings of the texts for which the gate is to open, [n].
        negative: of those for which it is not, [m].

    Returns:
        None where all readings are equal, so that no threshold parts them.
    """
    positive, negative = positive.double(), negative.double()
    values = torch.cat([positive, negative])
    levels = values.unique()  # ascending
    spread = float(values.std()) if len(values) > 1 else 0.0
    found = []
    for low, high in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
        middle = (low + high) / 2
        sides: tuple[Side, Side] = ("above", "below")
        for side in sides:
            is_open = (positive > middle, negative > middle)
            if side == "below":
                is_open = (~is_open[0], ~is_open[1])
            hits, false = int(is_open[0].sum()), int(is_open[1].sum())
            f1 = 2 * hits / (len(positive) + hits + false)
            found.append(Choice(f1, (high - low) / spread, middle, side))
    return max(found, key=lambda choice: (choice.f1, choice.gap), default=None)


def condition_vector(positive: torch.Tensor, negative: torch.Tensor, how: str) -> torch.Tensor | str:
    """The vector [width], float64, pointing to the positive side; or why there is none.

    Args:
        positive: [n, width].
        negative: [m, width].
        how: `pca` or `mean_difference`.
    """
    means = positive.double().mean(0), negative.double().mean(0)
    difference = means[0] - means[1]
    if not bool(difference.isfinite().all()):
        return "its activations are not finite"
    if is_rounding(float(difference.norm()), float(positive.norm(dim=1).mean())):
        return "both kinds have the same mean there, up to rounding"
    if how == "mean_difference":
        return difference
    axis = principal_axis(torch.cat([positive, negative]).double() - (means[0] + means[1]) / 2)
    return axis if float(axis @ difference) >= 0 else -axis


def fit_cast(spec: CastSpec, pairs: Contrasts, anatomy: Anatomy, tokenizer: Any, *, seed: int) -> Fitted:
    """Find the condition point.

    Raises:
        SubveneError: no layer tells the two kinds, or there are too few texts.
        TooLongError: a text is longer than the model's context.
    """
    # 1. One pass over all texts.
    contrasted = Contrasted.differing(spec, pairs, anatomy, tokenizer)
    activations = contrasted.activations(spec, anatomy, tokenizer)
    # 2. Of each kind some texts make the vectors, and the others choose.
    n, m = (len(side) for side in next(iter(activations.values())))
    used, held = _split(n, spec.held_out, seed), _split(m, spec.held_out, seed)

    def point(positive: torch.Tensor, negative: torch.Tensor) -> tuple[torch.Tensor, Choice] | str:
        vector = condition_vector(positive[used[0]], negative[held[0]], spec.direction)
        if isinstance(vector, str):
            return vector
        measured = MEASUREMENTS[spec.measure](vector.float())
        choice = chosen_threshold(measured(positive[used[1]]), measured(negative[held[1]]))
        return "all held-out texts read the same" if choice is None else (vector.float(), choice)

    points, left_out = by_layer(activations, point)
    choices = {layer: choice for layer, (_, choice) in points.items()}
    if not choices:
        layer, reason = next(iter(left_out.items()))
        raise SubveneError(
            f"recipe {spec.recipe}: no layer of {len(left_out)} has a condition vector; "
            f"{spec.site}[{layer}]: {reason}"
        )
    # 3. The layer that tells them best, its threshold and side.
    layer = max(choices, key=lambda at: (choices[at].f1, choices[at].gap, -at))
    choice = choices[layer]
    tensors = {
        tensor_name(spec.key, spec.site, layer, part): value
        for part, value in {
            None: points[layer][0],
            threshold_part(spec.measure, spec.tokens): torch.tensor(choice.threshold),
            side_part(spec.measure, spec.tokens): torch.tensor(1.0 if choice.side == "above" else -1.0),
        }.items()
    }
    told = contrasted.told(spec, pairs) | {
        "measure": spec.measure,
        "direction": spec.direction,
        "texts_for_vectors": [len(used[0]), len(held[0])],
        "texts_held_out": [len(used[1]), len(held[1])],
        "layer": layer,
        "threshold": choice.threshold,
        "side": choice.side,
        "f1_held_out": round(choice.f1, 4),
        "f1_by_layer": {str(at): round(one.f1, 4) for at, one in choices.items()},
    }
    return fitted_with(spec, tensors, told, left_out)


def _split(count: int, held_out: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the texts that make vectors, and of those that choose; the same for as many texts."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    n = min(max(round(count * held_out), 1), count - 1)
    return order[n:], order[:n]


def _check(spec: CastSpec, pairs: Contrasts, seed: int) -> None:
    for name, count in zip(("positive", "negative"), sides_count(pairs), strict=True):
        if count < 2:
            raise SubveneError(
                f"recipe {spec.recipe}: fit.pairs: expected at least two {name} texts, one to make the "
                f"vector of and one to choose the threshold by, found {count}"
            )


def _reach(spec: CastSpec, sizes: Sizes) -> Reach:
    return Reach(spec.site, frozenset(layers_of(spec.layers, sizes)), kinds=frozenset({FOR_GATES}))


def _fit(
    spec: CastSpec, pairs: Contrasts, anatomy: Anatomy, tokenizer: Any, *, seed: int, work: Path | None
) -> Fitted:
    return fit_cast(spec, pairs, anatomy, tokenizer, seed=seed)


CAST = Recipe(read_declared, read_given, _check, _reach, pairs_sha256, _fit)
