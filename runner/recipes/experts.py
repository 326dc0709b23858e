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

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from subvene.interventions import Sizes
from subvene.runner.data.limits import refuse_beyond_context
from subvene.runner.data.span import Text
from subvene.runner.data.text import by_length, pad, pad_id_of
from subvene.runner.files.progress import track
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.activations import forward_reading
from subvene.runner.recipes.base import Fitted, Reach, Recipe, layers_of
from subvene.runner.recipes.mean_difference import pairs_sha256, read_declared, read_given, sides_of, text_of
from subvene.specs import ContrastSystems, ContrastTexts, ExpertsSpec, SubveneError, tensor_name


def max_pooled(
    anatomy: Anatomy, spec: ExpertsSpec, layers: Sequence[int], texts: Sequence[Text], pad_id: int
) -> dict[int, torch.Tensor]:
    """Layer → each text's highest activation of every neuron over its span, float32 [texts, neurons]."""
    found: dict[int, torch.Tensor] = {}
    batches = by_length([len(text.ids) for text in texts], spec.batch_size)
    for chosen in track(batches, f"fitting {spec.key}"):
        rows = [texts[i].ids for i in chosen]
        batch = pad(rows, [len(row) for row in rows], pad_id, "right")
        outside = torch.ones(batch.input_ids.shape, dtype=torch.bool)
        for row, i in enumerate(chosen):
            outside[row, texts[i].start : texts[i].end] = False

        def read(
            layer: int,
            activation: torch.Tensor,
            outside: torch.Tensor = outside,
            chosen: Sequence[int] = chosen,
        ) -> None:
            h = activation.float().view(*outside.shape, -1)
            highest = h.masked_fill(outside.to(h.device).unsqueeze(-1), -torch.inf).amax(1).cpu()
            kept = found.setdefault(layer, torch.empty(len(texts), h.shape[-1]))
            kept[list(chosen)] = highest

        forward_reading(anatomy, spec.site, layers, batch, read)
    return found


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


def fit_experts(
    spec: ExpertsSpec, pairs: ContrastTexts | ContrastSystems, anatomy: Anatomy, tokenizer: Any
) -> Fitted:
    """Fit the gains of every layer.

    Raises:
        SubveneError: no neuron is an expert, or a text has no token to read.
        AnatomyError: a layer has no such site.
        TooLongError: a text is longer than the model's context.
    """
    whole = list(sides_of(pairs, tokenizer))
    texts = [text_of(*side, spec) for side in whole]
    refuse_beyond_context(anatomy.model, [len(text.ids) for text in texts], lambda i: repr(whole[i][2][:60]))
    layers = layers_of(spec.layers, anatomy.sizes)
    pooled = max_pooled(anatomy, spec, layers, texts, pad_id_of(tokenizer))
    # Positive and negative texts stand in turn.
    aurocs = {layer: auroc(pooled[layer][::2], pooled[layer][1::2]) for layer in layers}
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
            "texts": len(texts),
            "pairs_sha256": pairs_sha256(pairs),
            "max_tokens": spec.max_tokens,
            "experts_by_layer": {str(n): int((one > 0.5).sum()) for n, one in aurocs.items()},
            "changed_by_layer": {str(n): int((one != 1).sum()) for n, one in gains.items()},
            "highest_auroc_by_layer": {str(n): round(float(one.max()), 4) for n, one in aurocs.items()},
        },
    )


def _check(spec: ExpertsSpec, pairs: ContrastTexts | ContrastSystems, seed: int) -> None:
    """Texts that could be read can be fitted on."""


def _reach(spec: ExpertsSpec, sizes: Sizes) -> Reach:
    return Reach(spec.site, frozenset(layers_of(spec.layers, sizes)), kinds=frozenset({"scaling"}))


def _fit(
    spec: ExpertsSpec,
    pairs: ContrastTexts | ContrastSystems,
    anatomy: Anatomy,
    tokenizer: Any,
    *,
    seed: int,
    work: Path | None,
) -> Fitted:
    """Nothing is drawn, and one pass is all there is to keep."""
    return fit_experts(spec, pairs, anatomy, tokenizer)


EXPERTS = Recipe(read_declared, read_given, _check, _reach, pairs_sha256, _fit)
