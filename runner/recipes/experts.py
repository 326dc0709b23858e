"""Experts: gains for neurons that tell positive texts from negative ones.

Suau et al. 2024, "Whispering Experts: Neural Interventions for Toxicity Mitigation in Language Models"
(arXiv:2407.12824). A neuron's activation in a text is its maximum over tokens; its AUROC over the labelled
texts says how good a classifier it is by itself. AurA multiplies every expert (AUROC > 0.5) by
1 − 2·(AUROC − 0.5), as the authors' `AURAHook` does (github.com/apple/ml-act, act/hooks), Det0 sets the k
best to 0, Damp multiplies them by a constant. The authors hook the outputs of linear layers; here the site is
the file's choice, by default the input of the down projection, into which gains fold exactly.

As for mean differences, the first token of a sequence, an attention sink, is left out where there are others.
"""

from __future__ import annotations

from typing import Any

import torch

from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes.base import Fitted
from subvene.runner.recipes.contrasted import Contrasted, contrasted_recipe, pairs_sha256
from subvene.specs import Contrasts, ExpertsSpec, SubveneError, tensor_name


def auroc(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Of every column, the probability that a positive is above a negative, ties counted half; float64.

    Args:
        positive: [positives, columns].
        negative: [negatives, columns].
    """
    from scipy.stats import rankdata

    ranks = torch.from_numpy(rankdata(torch.cat([positive, negative]).numpy(), axis=0))
    n, m = len(positive), len(negative)
    above: torch.Tensor = ranks[:n].sum(0) - n * (n + 1) / 2
    return above / (n * m)


def gains_of(spec: ExpertsSpec, aurocs: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Layer → gains [neurons], float32, from the AUROC of each neuron."""
    if spec.gains == "aura":
        return {n: torch.where(one > 0.5, 1 - 2 * (one - 0.5), 1.0).float() for n, one in aurocs.items()}
    flat = torch.cat(list(aurocs.values()))
    order = flat.argsort(descending=True, stable=True)
    experts = order[flat[order] > 0.5][: spec.k]
    gains = torch.ones(len(flat))
    gains[experts] = 0.0 if spec.factor is None else spec.factor
    return dict(zip(aurocs, gains.split([len(one) for one in aurocs.values()]), strict=True))


def fit_experts(spec: ExpertsSpec, pairs: Contrasts, anatomy: Anatomy, tokenizer: Any) -> Fitted:
    """Fit the gains of every layer.

    Raises:
        SubveneError: no neuron is an expert, or a text has no token to read.
        AnatomyError: a layer has no such site.
        TooLongError: a text is longer than the model's context.
    """
    contrasted = Contrasted.of(spec, pairs, anatomy, tokenizer)
    activations = contrasted.activations(spec, anatomy, tokenizer)
    aurocs = {layer: auroc(*sides) for layer, sides in activations.items()}
    gains = gains_of(spec, aurocs)
    if all(bool((one == 1).all()) for one in gains.values()):
        raise SubveneError(
            f"recipe {spec.recipe}: no neuron at {spec.site} is an expert (AUROC > 0.5), or all gains are 1; "
            "the texts may be the same on both sides"
        )
    tensors = {tensor_name(spec.key, spec.site, layer): one for layer, one in gains.items()}
    return Fitted(
        tensors,
        {
            "recipe": spec.recipe,
            "key": spec.key,
            "site": spec.site,
            "gains": spec.gains,
            "k": spec.k,
            "factor": spec.factor,
            "texts": len(contrasted.texts),
            "pairs_sha256": pairs_sha256(pairs),
            "max_tokens": spec.max_tokens,
            "experts_by_layer": {str(n): int((one > 0.5).sum()) for n, one in aurocs.items()},
            "changed_by_layer": {str(n): int((one != 1).sum()) for n, one in gains.items()},
            "highest_auroc_by_layer": {str(n): round(float(one.max()), 4) for n, one in aurocs.items()},
        },
    )


EXPERTS = contrasted_recipe(fit_experts, kinds=frozenset({"scaling"}))
