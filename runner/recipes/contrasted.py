"""Positive and negative texts as recipes read them: their tokens, their activations, what they are called.

The first token of a sequence is left out of a mean and of a maximum, unless it is all there is: it is an
attention sink, whose activation is some hundred times longer than any other and says nothing about the text
(Sun et al. 2024, massive activations). In texts of unlike length it would outweigh the contrast.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from subvene.interventions import Sizes
from subvene.runner.data.contrast_pairs import read_pairs
from subvene.runner.data.limits import refuse_beyond_context
from subvene.runner.data.span import Text
from subvene.runner.data.text import pad_id_of, prompt_ids, raw_ids, reply_ids
from subvene.runner.files.json_value import Json
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.activations import pooled
from subvene.runner.recipes.base import Fitted, Reach, Recipe, layers_of
from subvene.specs import (
    ContrastPrompts,
    Contrasts,
    ContrastSystems,
    ContrastTexts,
    SubveneError,
    tensor_name,
)
from subvene.specs.pair_rows import ReadPairs, given_pairs
from subvene.specs.recipes.contrasted import ContrastedRecipe

_Spec = TypeVar("_Spec", bound=ContrastedRecipe)
_Found = TypeVar("_Found")

Sides = tuple[torch.Tensor, torch.Tensor]
"""Activations of the positive texts and of the negative ones, [texts, width] each."""


class Side(NamedTuple):
    """A text of one side: its token ids, the first contrasted one of them, what to call it."""

    ids: list[int]
    start: int
    what: str
    positive: bool


def sides_of(pairs: Contrasts, tokenizer: Any) -> Iterator[Side]:
    """The texts of both sides; of pairs, positive and negative texts in turn."""
    if isinstance(pairs, ContrastPrompts):
        for positive, texts in ((True, pairs.side("positive")), (False, pairs.side("negative"))):
            for text in texts:
                yield Side(prompt_ids(tokenizer, text), 0, text, positive)
    elif isinstance(pairs, ContrastSystems):
        for system in pairs.systems:
            for question in pairs.questions:
                for told, positive in ((system.positive, True), (system.negative, False)):
                    yield Side(prompt_ids(tokenizer, question, system=told), 0, question, positive)
    else:
        for pair in pairs.texts:
            for text, positive in ((pair.positive, True), (pair.negative, False)):
                if pair.asked is None:
                    yield Side(raw_ids(tokenizer, text), 0, text, positive)
                    continue
                before, reply = reply_ids(tokenizer, prompt_ids(tokenizer, pair.asked), text)
                yield Side([*before, *reply], len(before), text, positive)


@dataclass(frozen=True)
class Contrasted:
    """The texts of both sides, as a recipe reads them.

    Attributes:
        texts: token ids with the span that is read.
        positive: of each text, whether it is of the positive side.
        paired: whether positive and negative texts stand in turn, each against the next.
        cut: texts of which `max_tokens` leaves a part.
    """

    texts: tuple[Text, ...]
    positive: tuple[bool, ...]
    paired: bool
    cut: int

    @classmethod
    def of(cls, spec: ContrastedRecipe, pairs: Contrasts, anatomy: Anatomy, tokenizer: Any) -> Contrasted:
        """The texts of declared pairs.

        Raises:
            SubveneError: a contrasted text is empty or cut away by `max_tokens`.
            TooLongError: a text is longer than the model's context.
        """
        sides = list(sides_of(pairs, tokenizer))
        texts = tuple(_text(side, spec) for side in sides)
        cut = sum(len(text.ids) < len(side.ids) for text, side in zip(texts, sides, strict=True))
        lengths = [len(text.ids) for text in texts]
        refuse_beyond_context(anatomy.model, lengths, lambda i: repr(sides[i].what[:60]))
        positive = tuple(side.positive for side in sides)
        return cls(texts, positive, not isinstance(pairs, ContrastPrompts), cut)

    @classmethod
    def differing(
        cls, spec: ContrastedRecipe, pairs: Contrasts, anatomy: Anatomy, tokenizer: Any
    ) -> Contrasted:
        """As `of`; pairs that contrast nothing are refused, and sides that add up to nothing.

        Raises:
            SubveneError: naming the pair; and as `of` has it.
            TooLongError: a text is longer than the model's context.
        """
        contrasted = cls.of(spec, pairs, anatomy, tokenizer)
        contrasted._refuse_same(spec.recipe, spec.max_tokens)
        return contrasted

    @property
    def weights(self) -> list[float]:
        """Of each text, 1 through the number of its side, positive or negative."""
        n_positive = sum(self.positive)
        n_negative = len(self.positive) - n_positive
        return [1 / n_positive if positive else -1 / n_negative for positive in self.positive]

    def _refuse_same(self, recipe: str, max_tokens: int | None) -> None:
        positive, negative = (
            [text for text, is_so in zip(self.texts, self.positive, strict=True) if is_so == side]
            for side in (True, False)
        )
        for i, (one, other) in enumerate(zip(positive, negative, strict=False)):
            if self.paired and one == other:
                within = f" (within max_tokens: {max_tokens})" if max_tokens else ""
                raise SubveneError(
                    f"recipe {recipe}: pair {i} reads the same tokens on both sides{within}, so it contrasts "
                    "nothing; make them differ, or leave the pair out"
                )
        if Counter(positive) == Counter(negative):
            raise SubveneError(
                f"recipe {recipe}: the positive texts and the negative ones are the same, in another order: "
                "their difference is zero"
            )

    def activations(self, spec: ContrastedRecipe, anatomy: Anatomy, tokenizer: Any) -> dict[int, Sides]:
        """Layer → activations of both sides, float32."""
        found = pooled(
            anatomy,
            spec.site,
            layers_of(spec.layers, anatomy.sizes),
            self.texts,
            "max" if spec.tokens == "max" else "mean",  # of the last token alone it is that token
            pad_id=pad_id_of(tokenizer),
            batch_size=spec.batch_size,
            description=f"fitting {spec.key}",
        )
        positive = torch.tensor(self.positive)
        return {layer: (h[positive], h[~positive]) for layer, h in sorted(found.items())}

    def told(self, spec: ContrastedRecipe, pairs: Contrasts) -> dict[str, Json]:
        """Where tensors came from, for a provenance."""
        return {
            "recipe": spec.recipe,
            "key": spec.key,
            "site": spec.site,
            "tokens": spec.tokens,
            **_form(pairs, self.positive),
            "pairs_sha256": pairs_sha256(pairs),
            **({"columns": pairs.used.to_dict()} if isinstance(pairs, ReadPairs) else {}),
            "tokens_read": sum(text.end - text.start for text in self.texts),
            "max_tokens": spec.max_tokens,
            "texts_cut": self.cut,
        }


def _form(pairs: Contrasts, positive: Sequence[bool]) -> dict[str, Json]:
    if isinstance(pairs, ContrastPrompts):
        n = sum(positive)
        return {"form": "prompts", "positive": n, "negative": len(positive) - n}
    form = "texts" if isinstance(pairs, ContrastTexts) else "systems"
    return {"form": form, "pairs": len(positive) // 2}


def _text(side: Side, spec: ContrastedRecipe) -> Text:
    """The tokens of a side that are read: the contrasted ones, without an attention sink."""
    limit = spec.max_tokens
    if limit is not None and len(side.ids) > limit and spec.tokens == "last":
        raise SubveneError(
            f"recipe {spec.recipe}: `tokens: last` reads the last token of {side.what[:60]!r}, which is cut "
            f"away: it has {len(side.ids)} tokens and max_tokens is {limit}; raise max_tokens, or shorten "
            "the text"
        )
    ids, start = side.ids[:limit], side.start
    if len(ids) <= start:
        raise SubveneError(
            f"recipe {spec.recipe}: no token of {side.what[:60]!r} is left to read"
            + (f" within {limit} tokens" if limit else "")
        )
    if spec.tokens == "last":
        start = len(ids) - 1
    elif start == 0 and len(ids) > 1:
        start = 1  # all but the attention sink
    return Text(tuple(ids), start, len(ids))


def directions(
    spec: ContrastedRecipe,
    vectors: Mapping[int, torch.Tensor],
    left_out: Mapping[int, str],
    told: Mapping[str, Json],
) -> Fitted:
    """A vector a layer as what a recipe gives.

    Args:
        spec: the recipe.
        vectors: layer → [width].
        left_out: layer → why there is no vector.
        told: where they came from.

    Raises:
        SubveneError: no layer has a vector.
    """
    if not vectors:
        layer, reason = next(iter(left_out.items()))
        raise SubveneError(
            f"recipe {spec.recipe}: there is no direction at any of {len(left_out)} layers; "
            f"{spec.site}[{layer}]: {reason}"
        )
    tensors = {tensor_name(spec.key, spec.site, layer): vector for layer, vector in vectors.items()}
    return fitted_with(spec, tensors, told, left_out)


def by_layer(
    activations: Mapping[int, Sides], fit: Callable[[torch.Tensor, torch.Tensor], _Found | str]
) -> tuple[dict[int, _Found], dict[int, str]]:
    """What is fitted at each layer, and of the layers where there is nothing, why.

    Args:
        activations: layer → both sides.
        fit: (positive, negative) → what is fitted, or why it is not.
    """
    found = {layer: fit(*sides) for layer, sides in activations.items()}
    left_out = {layer: one for layer, one in found.items() if isinstance(one, str)}
    return {layer: one for layer, one in found.items() if not isinstance(one, str)}, left_out


def fitted_with(
    spec: ContrastedRecipe,
    tensors: Mapping[str, torch.Tensor],
    told: Mapping[str, Json],
    left_out: Mapping[int, str],
) -> Fitted:
    """Tensors as what a recipe gives, its provenance ending with the layers that have none, and why.

    Args:
        spec: the recipe.
        tensors: by their full names.
        told: where they came from.
        left_out: layer → why there is no tensor.
    """
    return Fitted(
        dict(tensors),
        {**told, "left_out": {str(layer): reason for layer, reason in left_out.items()}},
        {(spec.key, spec.site, layer): reason for layer, reason in left_out.items()},
    )


def refuse_unpaired(spec: ContrastedRecipe, pairs: Contrasts, instead: str) -> None:
    """Refuse lists of prompts, where it matters which text stands against which.

    Raises:
        SubveneError: saying what takes them.
    """
    if isinstance(pairs, ContrastPrompts):
        raise SubveneError(
            f"recipe {spec.recipe}: fit.pairs: expected pairs (`texts`, or `systems` with `questions`), "
            f"found two lists of `prompts`, which are not paired; {instead}"
        )


def sides_count(pairs: Contrasts) -> tuple[int, int]:
    """How many positive texts there are, and how many negative ones."""
    if isinstance(pairs, ContrastPrompts):
        return len(pairs.side("positive")), len(pairs.side("negative"))
    n = len(pairs.systems) * len(pairs.questions) if isinstance(pairs, ContrastSystems) else len(pairs.texts)
    return n, n


def pairs_sha256(pairs: Contrasts) -> str:
    """A hash of all that they say."""
    # A pair without a system prompt says what it said before there were any.
    alone = isinstance(pairs, ContrastTexts) and all(pair.system is None for pair in pairs.texts)
    exclude = {"texts": {"__all__": {"system"}}} if alone else None
    return hashlib.sha256(pairs.model_dump_json(exclude=exclude).encode()).hexdigest()


def contrasted_recipe(
    fit: Callable[[_Spec, Contrasts, Anatomy, Any], Fitted],
    *,
    check: Callable[[_Spec, Contrasts], None] | None = None,
    kinds: frozenset[str] | None = None,
    fields: Callable[[_Spec], Mapping[str, str]] | None = None,
) -> Recipe:
    """A recipe on positive and negative texts that draws nothing, and reads them in one pass.

    Args:
        fit: (spec, pairs, anatomy, tokenizer) → tensors.
        check: refuses pairs that could not be fitted on; None: what could be read can be.
        kinds: of interventions that its tensors are for; None: any.
        fields: what these have to say, by the recipe's spec; None: nothing.
    """

    def reach(spec: _Spec, sizes: Sizes) -> Reach:
        said = {} if fields is None else fields(spec)
        return Reach(spec.site, frozenset(layers_of(spec.layers, sizes)), kinds=kinds, fields=said)

    def checked(spec: _Spec, pairs: Contrasts, seed: int) -> None:
        if check is not None:
            check(spec, pairs)

    def fitted(
        spec: _Spec, pairs: Contrasts, anatomy: Anatomy, tokenizer: Any, *, seed: int, work: Path | None
    ) -> Fitted:
        return fit(spec, pairs, anatomy, tokenizer)

    return Recipe(read_declared, read_given, checked, reach, pairs_sha256, fitted)


def read_declared(spec: ContrastedRecipe, folder: Path) -> Contrasts:
    """The pairs that a recipe names, relative to its file's folder."""
    return read_pairs(spec.pairs, folder)


def read_given(spec: ContrastedRecipe, data: Any) -> Contrasts:
    """The pairs that a caller hands in, as they are or as rows."""
    return data if isinstance(data, Contrasts) else given_pairs(data)
