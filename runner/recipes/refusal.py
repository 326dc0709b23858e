"""The direction of refusal.

Arditi et al. 2024, "Refusal in Language Models Is Mediated by a Single Direction", arXiv:2406.11717, sections
2.3 and C.1; code: github.com/andyrdt/refusal_direction, pipeline/submodules
(generate_directions.py, select_direction.py) and pipeline/run_pipeline.py (`filter_data`).

Candidates are differences of mean activations of refused and followed instructions at the input of every
block (the code's layer l; `block_input[l]` here) and at every token of the template after the instruction.
Of each, on other prompts:

* bypass: the mean score of refusal of positive prompts with the direction removed from the inputs of all
  blocks and from the outputs of all attention modules and MLPs, at every token;
* induced: the mean score of negative prompts with the direction added, as long as it is, to its own block's
  input at every token;
* KL: mean KL(untouched ‖ removed) at the last token of negative prompts.

The score is log p − log(1 − p), p the probability that the first token of the answer is one of a few that
refusals begin with. The direction with the least bypass is chosen among those with induced ≥ `min_induced`,
KL ≤ `max_kl` and layer < 0.8·L. The paper has > and <, the code ≥ and ≤ as here. The code adds 10⁻⁸ within
the score's logarithms, as here, and 10⁻⁶ within those of the KL, which is exact here. The code reads 128
prompts of each kind and chooses by 32 others, both filtered; here they are shares of those that are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from subvene.interventions import Sizes
from subvene.runner.data.limits import refuse_beyond_context
from subvene.runner.data.span import Text
from subvene.runner.data.text import pad_id_of, prompt_ids, response_ids
from subvene.runner.files.json_value import Json
from subvene.runner.files.progress import track
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.evaluating import evaluating
from subvene.runner.passes.activations import weighted_sums
from subvene.runner.recipes.base import Fitted, Reach, Recipe, layers_of
from subvene.runner.recipes.contrasted import pairs_sha256, read_declared, read_given
from subvene.runner.recipes.refusal_scores import (
    SITES,
    Candidate,
    Ids,
    NextToken,
    Prompts,
    Scored,
    score,
    scored,
)
from subvene.specs import ContrastPrompts, Contrasts, ContrastTexts, RefusalSpec, SubveneError, tensor_name

_PROBES = ("a", "?", "1", "word.")
"""Instructions that end unlike: what prompts of all of them end with is the template's."""


def fit_refusal(
    spec: RefusalSpec,
    pairs: Contrasts,
    anatomy: Anatomy,
    tokenizer: Any,
    *,
    seed: int,
    work: Path | None = None,
) -> Fitted:
    """Find the direction.

    Args:
        spec: the recipe.
        pairs: two lists of instructions, refused and followed.
        anatomy: of the model.
        tokenizer: the model's, with a chat template.
        seed: of which prompts the direction is chosen by.
        work: nothing is kept.

    Raises:
        SubveneError: the lists are too short, too few prompts pass the filter, a word of refusal is not one
            token, or no candidate passes the limits.
        TooLongError: a prompt is longer than the model's context.
    """
    _check(spec, pairs, seed)
    model = NextToken(anatomy, spec.batch_size, pad_id_of(tokenizer), first_tokens(spec, tokenizer))
    with evaluating(anatomy.model):
        # 1. Prompts that the untouched model refuses, and prompts that it follows; apart from those, others.
        read, chosen_by = _prompts(spec, pairs, model, tokenizer, seed)
        # 2. A candidate for each layer and token.
        positions = spec.positions or suffix_length(tokenizer)
        candidates = _candidates(spec, anatomy, read, positions, model.pad_id)
        # 3. What removing and adding each does, and the best.
        untouched = model.logits(chosen_by.negative)
        before = {
            "positive": round(model.mean_score(chosen_by.positive), 6),
            "negative": round(float(score(untouched, model.refusal).mean()), 6),
        }
        found = [
            scored(model, chosen_by, untouched, candidate)
            for candidate in track(candidates, f"fitting {spec.key}: choosing")
        ]
    best = _best(spec, found)
    chosen = best.candidate
    tensors = {
        tensor_name(spec.key, site, layer): chosen.direction.clone()
        for site in SITES
        for layer in range(anatomy.sizes.n_layers)
    }
    told: dict[str, Json] = {
        "recipe": spec.recipe,
        "key": spec.key,
        "pairs_sha256": pairs_sha256(pairs),
        "seed": seed,
        "prompts_read": {"positive": len(read.positive), "negative": len(read.negative)},
        "prompts_chosen_by": {"positive": len(chosen_by.positive), "negative": len(chosen_by.negative)},
        "site": SITES[0],
        "layer": chosen.layer,
        "position": chosen.position,
        "norm": round(float(chosen.direction.norm()), 4),
        **best.told(),
        "untouched": {**before},
        "candidates": [
            {"layer": one.candidate.layer, "position": one.candidate.position, **one.told()} for one in found
        ],
    }
    return Fitted(tensors, told)


def suffix_length(tokenizer: Any) -> int:
    """How many tokens the chat template puts after an instruction.

    Raises:
        SubveneError: none; there is no template, or it ends with the instruction.
    """
    prompts = [prompt_ids(tokenizer, text) for text in _PROBES]
    shortest, length = min(map(len, prompts)), 0
    while length < shortest and len({ids[-length - 1] for ids in prompts}) == 1:
        length += 1
    if not length:
        raise SubveneError(
            "recipe refusal: this tokenizer's prompts end with the instruction, so there is no token after "
            "it at which a direction could be read; use a chat model, or say `positions`"
        )
    return length


def first_tokens(spec: RefusalSpec, tokenizer: Any) -> torch.Tensor:
    """The ids of the words that refusals begin with.

    Raises:
        SubveneError: a word is not one token.
    """
    found = []
    for word in spec.refusal_words:
        ids = response_ids(tokenizer, word)
        if len(ids) != 1:
            raise SubveneError(
                f"recipe refusal: fit.refusal_words: expected words that are one token of this model, found "
                f"{word!r}, which is {len(ids)}: {tokenizer.convert_ids_to_tokens(ids)}"
            )
        found += ids
    return torch.tensor(sorted(set(found)))


def _prompts(
    spec: RefusalSpec, pairs: Contrasts, model: NextToken, tokenizer: Any, seed: int
) -> tuple[Prompts, Prompts]:
    """The prompts that give candidates, and those by which one is chosen; filtered where that is asked."""
    parts: list[dict[str, list[Ids]]] = [{}, {}]
    for side in _SIDES:
        texts = _side(pairs, side)
        prompts = [prompt_ids(tokenizer, text) for text in texts]
        refuse_beyond_context(
            model.anatomy.model,
            [len(ids) for ids in prompts],
            [repr(text[:60]) for text in texts].__getitem__,
        )
        for part, chosen in zip(parts, _shares(spec, len(prompts), seed), strict=True):
            kept = [prompts[i] for i in chosen]
            if spec.filter:
                refused = score(model.logits(kept), model.refusal) * (1 if side == "positive" else -1) > 0
                kept = [ids for ids, is_kept in zip(kept, refused.tolist(), strict=True) if is_kept]
                if not kept:
                    what = "is rather refused than followed" if side == "positive" else "is rather followed"
                    raise SubveneError(
                        f"recipe refusal: fit.filter: none of {len(chosen)} {side} prompts {what} by the "
                        "untouched model; give more prompts, the words that its refusals begin with "
                        "(`refusal_words`), or `filter: false`"
                    )
            part[side] = kept
    return Prompts(**parts[0]), Prompts(**parts[1])


_SIDES: tuple[Literal["positive"], Literal["negative"]] = ("positive", "negative")


def _side(pairs: Contrasts, side: Literal["positive", "negative"]) -> tuple[str, ...]:
    if isinstance(pairs, ContrastTexts) and all(pair.prompt is None for pair in pairs.texts):
        return tuple(getattr(pair, side) for pair in pairs.texts)  # rows of two columns: a list each
    if not isinstance(pairs, ContrastPrompts):
        raise SubveneError(
            "recipe refusal: fit.pairs: expected two lists of `prompts`, instructions that the model refuses "
            "(`positive`) and instructions that it follows (`negative`), or rows of these two alone; found "
            "answers to prompts"
        )
    return pairs.side(side)


def _shares(spec: RefusalSpec, n: int, seed: int) -> tuple[list[int], list[int]]:
    """Which of n prompts give candidates, and by which one is chosen."""
    order = np.random.default_rng([seed]).permutation(n).tolist()
    held_out = max(1, round(n * spec.validation))
    return sorted(order[held_out:]), sorted(order[:held_out])


def _candidates(
    spec: RefusalSpec, anatomy: Anatomy, prompts: Prompts, positions: int, pad_id: int
) -> list[Candidate]:
    """The differences of means, by position from the end and layer."""
    ids = [*prompts.positive, *prompts.negative]
    if (shortest := min(map(len, ids))) < positions:
        raise SubveneError(
            f"recipe refusal: fit.positions: expected at most {shortest}, the tokens of the shortest prompt, "
            f"found {positions}"
        )
    weights = [1 / len(prompts.positive)] * len(prompts.positive)
    weights += [-1 / len(prompts.negative)] * len(prompts.negative)
    layers = _layers(spec, anatomy.sizes)
    found = []
    for position in range(-positions, 0):
        texts = [Text(tuple(one), len(one) + position, len(one) + position + 1) for one in ids]
        sums = weighted_sums(
            anatomy,
            SITES[0],
            layers,
            texts,
            weights,
            pad_id=pad_id,
            batch_size=spec.batch_size,
            description=f"fitting {spec.key}: token {position}",
        )
        without = sums.degenerate()
        found += [Candidate(layer, position, sums.vectors[layer]) for layer in layers if layer not in without]
    return found


def _best(spec: RefusalSpec, found: Sequence[Scored]) -> Scored:
    """The direction that is chosen; of equally good ones the first.

    Raises:
        SubveneError: none is within the limits.
    """
    if passing := [one for one in found if one.passes(spec)]:
        return min(passing, key=lambda one: one.bypass)
    kls, induced = [one.kl for one in found], [one.induced for one in found]
    seen = f"; the least kl is {min(kls):.3g}, the highest induced {max(induced):.3g}" if found else ""
    raise SubveneError(
        f"recipe refusal: none of {len(found)} candidates has kl ≤ {spec.max_kl:g} and induced ≥ "
        f"{spec.min_induced:g}{seen}; give other prompts, or other limits (`max_kl`, `min_induced`)"
    )


def _layers(spec: RefusalSpec, sizes: Sizes) -> tuple[int, ...]:
    """The layers whose inputs may give the direction.

    Raises:
        CompileError: the model has no such layer.
        SubveneError: there is none.
    """
    limit = int(sizes.n_layers * (1 - spec.leave_last))
    layers = tuple(layer for layer in layers_of(spec.layers, sizes) if layer < limit)
    if not layers:
        raise SubveneError(
            f"recipe refusal: fit.layers: expected a layer below {limit}, as `leave_last: "
            f"{spec.leave_last:g}` leaves {limit} of {sizes.n_layers}"
        )
    return layers


def _check(spec: RefusalSpec, pairs: Contrasts, seed: int) -> None:
    """Refuse lists that cannot be divided.

    Raises:
        SubveneError: naming the list.
    """
    for side in _SIDES:
        n = len(_side(pairs, side))
        if not _shares(spec, n, seed)[0]:
            raise SubveneError(
                f"recipe refusal: fit.pairs.prompts.{side}: expected prompts to read and others to choose "
                f"by, found {n} in all; give more, or another share in fit.validation"
            )


def _reach(spec: RefusalSpec, sizes: Sizes) -> Reach:
    _layers(spec, sizes)
    return Reach(SITES[0], frozenset(range(sizes.n_layers)), also=frozenset(SITES[1:]))


REFUSAL = Recipe(read_declared, read_given, _check, _reach, pairs_sha256, fit_refusal)
