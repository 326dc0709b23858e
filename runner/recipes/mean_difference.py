"""Mean difference of contrast pairs (contrastive activation addition, Rimsky et al. 2024; persona vectors).

v[l] = mean over pairs of (ā⁺[l] − ā⁻[l]), ā the mean (or last) activation of the contrasted tokens.

The first token of a sequence is left out of a mean, unless it is all there is: it is an attention sink, whose
activation is some hundred times longer than any other and says nothing about the text (Sun et al. 2024,
massive activations). In texts of unlike length it would outweigh the contrast.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from subvene.interventions import Sizes
from subvene.runner.data.contrast_pairs import read_pairs
from subvene.runner.data.limits import refuse_beyond_context
from subvene.runner.data.span import Text
from subvene.runner.data.text import pad_id_of, prompt_ids, raw_ids, reply_ids
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.activations import weighted_sums
from subvene.runner.recipes.base import Fitted, Reach, Recipe, layers_of
from subvene.specs import (
    ContrastSystems,
    ContrastTexts,
    ExpertsSpec,
    MeanDifferenceSpec,
    SubveneError,
    tensor_name,
)
from subvene.specs.pair_rows import ReadPairs, given_pairs


def fit_mean_difference(
    spec: MeanDifferenceSpec, pairs: ContrastTexts | ContrastSystems, anatomy: Anatomy, tokenizer: Any
) -> Fitted:
    """Fit one vector per layer.

    Args:
        spec: the recipe; `pairs` in it have been read into `pairs`.
        pairs: texts against texts, or system prompts against system prompts.
        anatomy: of the model.
        tokenizer: the model's.

    Raises:
        SubveneError: a contrasted text is empty or cut away by `max_tokens`, or no layer has a direction.
        TooLongError: a text is longer than the model's context.
    """
    # 1. Both sides of every pair, tokenised with the contrasted tokens marked.
    whole = list(sides_of(pairs, tokenizer))
    sides = [text_of(*side, spec) for side in whole]
    cut = sum(len(side.ids) < len(ids) for side, (ids, _, _) in zip(sides, whole, strict=True))
    refuse_beyond_context(anatomy.model, [len(side.ids) for side in sides], lambda i: repr(whole[i][2][:60]))
    _refuse_same(sides, spec)
    # 2. One forward pass over all of them; a positive text adds to the sum, a negative one subtracts.
    n_pairs = len(sides) // 2
    weights = [sign / n_pairs for _ in range(n_pairs) for sign in (1.0, -1.0)]
    layers = layers_of(spec.layers, anatomy.sizes)
    sums = weighted_sums(
        anatomy,
        spec.site,
        layers,
        sides,
        weights,
        pad_id=pad_id_of(tokenizer),
        batch_size=spec.batch_size,
        description=f"fitting {spec.key}",
    )
    # 3. Each layer's vector under its full name, and where it came from.
    left_out = sums.degenerate()
    vectors = {layer: vector for layer, vector in sums.vectors.items() if layer not in left_out}
    if not vectors:
        layer, reason = next(iter(left_out.items()))
        raise SubveneError(
            f"recipe {spec.recipe}: there is no direction at any of {len(left_out)} layers; "
            f"{spec.site}[{layer}]: {reason}"
        )
    tensors = {tensor_name(spec.key, spec.site, layer): vector for layer, vector in vectors.items()}
    return Fitted(
        tensors,
        {
            "recipe": spec.recipe,
            "key": spec.key,
            "site": spec.site,
            "tokens": spec.tokens,
            "form": "texts" if isinstance(pairs, ContrastTexts) else "systems",
            "pairs": n_pairs,
            "pairs_sha256": pairs_sha256(pairs),
            **({"columns": pairs.used.to_dict()} if isinstance(pairs, ReadPairs) else {}),
            "tokens_read": sum(side.end - side.start for side in sides),
            "max_tokens": spec.max_tokens,
            "texts_cut": cut,
            "left_out": {str(layer): reason for layer, reason in left_out.items()},
            "norm_by_layer": {str(layer): round(float(v.norm()), 4) for layer, v in vectors.items()},
        },
        {(spec.key, spec.site, layer): reason for layer, reason in left_out.items()},
    )


def sides_of(pairs: ContrastTexts | ContrastSystems, tokenizer: Any) -> Iterator[tuple[list[int], int, str]]:
    """Positive and negative texts in turn: ids, first contrasted token, and what to call it."""
    if isinstance(pairs, ContrastSystems):
        for system in pairs.systems:
            for question in pairs.questions:
                for side in (system.positive, system.negative):
                    yield prompt_ids(tokenizer, question, system=side), 0, question
        return
    for pair in pairs.texts:
        for side in (pair.positive, pair.negative):
            if pair.asked is None:
                yield raw_ids(tokenizer, side), 0, side
                continue
            prompt, reply = reply_ids(tokenizer, prompt_ids(tokenizer, pair.asked), side)
            yield [*prompt, *reply], len(prompt), side


def text_of(ids: list[int], start: int, what: str, spec: MeanDifferenceSpec | ExpertsSpec) -> Text:
    """The tokens of a side that are read: the contrasted ones, without an attention sink."""
    limit = spec.max_tokens
    if limit is not None and len(ids) > limit and spec.tokens == "last":
        raise SubveneError(
            f"recipe {spec.recipe}: `tokens: last` reads the last token of {what[:60]!r}, which is cut away: "
            f"it has {len(ids)} tokens and max_tokens is {limit}; raise max_tokens, or shorten the text"
        )
    ids = ids[:limit]
    if len(ids) <= start:
        raise SubveneError(
            f"recipe {spec.recipe}: no token of {what[:60]!r} is left to read"
            + (f" within {limit} tokens" if limit else "")
        )
    if spec.tokens == "last":
        start = len(ids) - 1
    elif start == 0 and len(ids) > 1:
        start = 1  # all but the attention sink
    return Text(tuple(ids), start, len(ids))


def _refuse_same(sides: Sequence[Text], spec: MeanDifferenceSpec) -> None:
    """Refuse pairs that contrast nothing, and those that add up to nothing."""
    for i, (positive, negative) in enumerate(zip(sides[::2], sides[1::2], strict=True)):
        if positive == negative:
            raise SubveneError(
                f"recipe {spec.recipe}: pair {i} reads the same tokens on both sides"
                f"{f' (within max_tokens: {spec.max_tokens})' if spec.max_tokens else ''}, so it contrasts "
                "nothing; make them differ, or leave the pair out"
            )
    if Counter(sides[::2]) == Counter(sides[1::2]):
        raise SubveneError(
            f"recipe {spec.recipe}: the positive texts and the negative ones are the same, in another order: "
            "their difference is zero"
        )


def read_declared(spec: MeanDifferenceSpec | ExpertsSpec, folder: Path) -> ContrastTexts | ContrastSystems:
    """The pairs that a recipe names, relative to its file's folder."""
    return read_pairs(spec.pairs, folder)


def read_given(spec: MeanDifferenceSpec | ExpertsSpec, data: Any) -> ContrastTexts | ContrastSystems:
    """The pairs that a caller hands in, as they are or as rows."""
    if isinstance(data, ContrastTexts | ContrastSystems):
        return data
    return given_pairs(data)


def pairs_sha256(pairs: ContrastTexts | ContrastSystems) -> str:
    """A hash of all that they say."""
    # A pair without a system prompt says what it said before there were any.
    alone = isinstance(pairs, ContrastTexts) and all(pair.system is None for pair in pairs.texts)
    exclude = {"texts": {"__all__": {"system"}}} if alone else None
    return hashlib.sha256(pairs.model_dump_json(exclude=exclude).encode()).hexdigest()


def _check(spec: MeanDifferenceSpec, pairs: ContrastTexts | ContrastSystems, seed: int) -> None:
    """Pairs that could be read can be fitted on."""


def _reach(spec: MeanDifferenceSpec, sizes: Sizes) -> Reach:
    return Reach(spec.site, frozenset(layers_of(spec.layers, sizes)))


def _fit(
    spec: MeanDifferenceSpec,
    pairs: ContrastTexts | ContrastSystems,
    anatomy: Anatomy,
    tokenizer: Any,
    *,
    seed: int,
    work: Path | None,
) -> Fitted:
    """Nothing is drawn, and one pass is all there is to keep."""
    return fit_mean_difference(spec, pairs, anatomy, tokenizer)


MEAN_DIFFERENCE = Recipe(read_declared, read_given, _check, _reach, pairs_sha256, _fit)
