"""Persona vectors (Chen et al. 2025, arXiv:2507.21509, section 2).

For each trait: ask every extraction question under system prompts that ask for the trait and under prompts
that ask for its opposite; let a judge score the responses; keep the pairs in which the one shows the trait,
the other does not, and both are coherent; and take, at the output of every block,

    v[l] = mean over kept pairs of (ā⁺[l] − ā⁻[l]),

ā the mean activation over the response's tokens (or the prompt's, or the prompt's last one). Beside it the
typical norm of the activation there is kept: the mean of ‖h‖ over the response tokens of kept responses, in
whose units coefficients compare across traits, layers and models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from subvene.interventions import Sizes
from subvene.interventions.steering import RESIDUAL_NORM
from subvene.runner.data.text import pad_id_of
from subvene.runner.data.traits import Trait, read_trait
from subvene.runner.edits.not_finite import ADVICE_OF_MODEL, NotFiniteError
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import Result, digest
from subvene.runner.files.statistics import mean_and_sd
from subvene.runner.intervened.elsewhere import RunElsewhere
from subvene.runner.intervened.generate import Generate
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.rollouts import rollouts
from subvene.runner.judges import ZERO_TO_HUNDRED, Description, Judge, make_judge, scored
from subvene.runner.measures.geometry import explained_variance
from subvene.runner.measures.missing import missing_in_words
from subvene.runner.measures.responses import Asked, Do, Response, missing_reasons, respond
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes.base import Fitted, Reach, Recipe
from subvene.runner.recipes.persona_means import SITE, means_and_norms
from subvene.specs import PersonaSpec, SubveneError, tensor_name

_SIDES = ("positive", "negative")


@dataclass(frozen=True)
class PersonaData:
    """What persona vectors are fitted on: the traits, and who judges."""

    traits: tuple[Trait, ...]
    judge: Judge


@dataclass(frozen=True)
class Extraction:
    """The responses of one trait, in pairs, and which of them are kept.

    Attributes:
        pairs: (positive, negative) responses to the same question under a pair of instructions.
        kept: indices of the pairs that the vector is made of.
        dropped: by reason, how many pairs are not kept.
        warning: what there is to warn of; None if nothing.
    """

    pairs: tuple[tuple[Response, Response], ...]
    kept: tuple[int, ...]
    dropped: dict[str, int]
    warning: str | None

    def summary(self) -> dict[str, Json]:
        """JSON values: counts, mean scores, the warning."""
        mean_score = {
            side: mean_and_sd(pair[i].score for pair in self.pairs)[0] for i, side in enumerate(_SIDES)
        }
        return {
            "pairs": len(self.pairs),
            "kept": len(self.kept),
            "dropped": self.dropped,
            "missing": sum(len(side.missing) for pair in self.pairs for side in pair),
            "warning": self.warning,
            "mean_score": mean_score,
        }


@dataclass(frozen=True)
class Vectors:
    """What a trait's kept pairs give.

    Attributes:
        vectors: float32 [layers, width].
        residual_norm: float32 [layers].
        explained: per layer, the share of the pairs' differences that lies along the vector.
    """

    vectors: torch.Tensor
    residual_norm: torch.Tensor
    explained: list[float | None]


def extract(
    spec: PersonaSpec,
    trait: Trait,
    m: IntervenedModel,
    judge: Judge,
    *,
    seed: int,
    do: Do,
    generate: Generate = rollouts,
) -> Extraction:
    """Generate, judge and filter one trait's pairs of responses.

    Args:
        spec: the recipe.
        trait: the trait.
        m: the unedited model.
        judge: who scores the responses.
        seed: of the run.
        do: does a unit of work, or gives what is recorded of it.
        generate: generates the responses.
    """
    prompts = trait.system_prompts()[: spec.instructions]
    questions = trait.questions[: spec.questions]
    asked = [
        Asked(question, system, rollout=rollout)
        for pair in prompts
        for question in questions
        for rollout in range(spec.sampling.rollouts)
        for system in pair
    ]
    found = respond(
        lambda: m,
        asked,
        spec.sampling,
        trait,
        judge,
        identity={"unit": "extraction"},
        seed=seed,
        description=f"{trait.name}: responses",
        do=do,
        generate=generate,
    ).responses
    pairs = tuple(zip(found[::2], found[1::2], strict=True))
    dropped: dict[str, int] = {}
    kept = []
    for i, pair in enumerate(pairs):
        reason = why_dropped(spec, *pair)
        if reason is None:
            kept.append(i)
        else:
            dropped[reason] = dropped.get(reason, 0) + 1
    warning = None
    if missing := missing_reasons(found):
        warning = f"{trait.name}: {missing_in_words(missing)}; the vector is made without these pairs"
    if len(kept) < spec.keep.warn_below:
        reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
        few = (
            f"{trait.name}: {len(kept)} of {len(pairs)} pairs were kept ({reasons or 'none dropped'}), fewer "
            f"than {spec.keep.warn_below}: the vector is made of little"
        )
        warning = few if warning is None else f"{few}; {warning}"
    return Extraction(pairs, tuple(kept), dropped, warning)


def why_dropped(spec: PersonaSpec, positive: Response, negative: Response) -> str | None:
    """Why a pair is not used; None if it is. The first reason of this order counts."""
    pair = (positive, negative)
    if any(not response.text for response in pair):
        return "empty"
    if any(response.refused for response in pair):
        return "refused"
    if any(response.missing for response in pair):
        return "missing"
    if any(response.score is None or response.coherence is None for response in pair):
        return "no_score"
    if any((response.coherence or 0.0) < spec.keep.coherence for response in pair):
        return "incoherent"
    if (positive.score or 0.0) < spec.keep.positive:
        return "positive_low"
    if (negative.score or 0.0) >= spec.keep.negative:
        return "negative_high"
    return None


def vectors_of(
    spec: PersonaSpec, trait: Trait, extraction: Extraction, anatomy: Anatomy, tokenizer: Any
) -> Vectors:
    """The vectors of a trait at the output of every block.

    Raises:
        SubveneError: no pair was kept, or no layer has a direction.
        NotFiniteError: the model's activations are not finite.
    """
    if not extraction.kept:
        reasons = ", ".join(f"{reason} {count}" for reason, count in extraction.dropped.items())
        raise SubveneError(
            f"fit: trait {trait.name}: none of {len(extraction.pairs)} pairs of responses was kept "
            f"({reasons}); "
            "the model may be too small to follow the system prompts, or the judge cannot tell: look at the "
            "responses, lower `fit.keep`, or take another judge"
        )
    sides = [side for i in extraction.kept for side in extraction.pairs[i]]
    means, norms = means_and_norms(spec, sides, anatomy, pad_id_of(tokenizer), f"{trait.name}: activations")
    bad = ~(torch.isfinite(means).all(-1).all(0) & torch.isfinite(norms))
    if bool(bad.any()):
        layers = ", ".join(map(str, bad.nonzero().flatten().tolist()))
        raise NotFiniteError(
            f"fit: trait {trait.name}: the activations of the responses at {SITE}, layers {layers}, are not "
            f"finite; {ADVICE_OF_MODEL}",
            of_model=True,
        )
    differences = means[::2] - means[1::2]
    vectors = differences.mean(0, dtype=torch.float64).float()
    if not bool(vectors.any()):
        raise SubveneError(
            f"fit: trait {trait.name}: the kept pairs of responses differ nowhere, so there is no direction; "
            "look at the responses"
        )
    explained = [explained_variance(differences[:, layer]) for layer in range(anatomy.sizes.n_layers)]
    return Vectors(vectors, norms, explained)


def without_direction(found: Vectors) -> dict[int, str]:
    """Layer → why it has no vector."""
    zero = (found.vectors == 0).all(-1).nonzero().flatten().tolist()
    return dict.fromkeys(zero, "the responses of both sides have the same activations there")


def named_tensors(trait: Trait, found: Vectors) -> dict[str, torch.Tensor]:
    """The vectors and norms by their full names; without those of layers where there is no direction."""
    tensors = {}
    for layer, (vector, norm) in enumerate(zip(found.vectors, found.residual_norm, strict=True)):
        if layer in without_direction(found):
            continue
        tensors[tensor_name(trait.name, SITE, layer)] = vector.clone()
        tensors[tensor_name(trait.name, SITE, layer, RESIDUAL_NORM)] = norm.clone()
    return tensors


def provenance_of(
    spec: PersonaSpec,
    judge: Description,
    traits: Sequence[Trait],
    extractions: Mapping[str, Extraction],
    found: Mapping[str, Vectors],
    *,
    seed: int,
) -> dict[str, Json]:
    """Where the tensors come from, JSON values; `judge` is what its `describe` gives."""
    return {
        "recipe": spec.recipe,
        "site": SITE,
        "tokens": spec.tokens,
        "sampling": spec.sampling.said(),
        "keep": spec.keep.model_dump(mode="json"),
        "judge": judge,
        "seed": seed,
        "traits": {
            trait.name: {
                "sha256": trait.sha256,
                "prompts_sha256": _prompts_sha256(extractions[trait.name]),
                **extractions[trait.name].summary(),
                "norm_by_layer": _rounded(found[trait.name].vectors.norm(dim=-1)),
                "left_out": {str(k): why for k, why in without_direction(found[trait.name]).items()},
                "residual_norm_by_layer": _rounded(found[trait.name].residual_norm),
            }
            for trait in traits
        },
        "warnings": [e.warning for e in extractions.values() if e.warning is not None],
    }


def _prompts_sha256(extraction: Extraction) -> str:
    prompts = [[list(side.prompt) for side in pair] for pair in extraction.pairs]
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()


def _rounded(values: torch.Tensor) -> dict[str, float]:
    return {str(layer): round(float(value), 4) for layer, value in enumerate(values)}


def _at_once(identity: Mapping[str, Json], work: Callable[[], Result]) -> Result:
    return work()


def read_data(spec: PersonaSpec, folder: Path) -> PersonaData:
    """The traits and the judge of a spec.

    Raises:
        SubveneError: a trait file is not as it must be, or judges of this kind cannot score traits.
    """
    return PersonaData(
        tuple(read_trait(trait, folder) for trait in spec.traits),
        make_judge(spec.judge, folder, scale=ZERO_TO_HUNDRED),
    )


def check(spec: PersonaSpec, data: PersonaData, seed: int) -> None:
    """Check the judge, before a model is loaded."""
    data.judge.check(scored(data.traits))


def _sha256(data: PersonaData) -> str:
    return digest([[trait.sha256 for trait in data.traits], data.judge.identity(scored(data.traits))])


def _reach(spec: PersonaSpec, sizes: Sizes) -> Reach:
    return Reach(SITE, frozenset(range(sizes.n_layers)))


def _fit(
    spec: PersonaSpec, data: PersonaData, anatomy: Anatomy, tokenizer: Any, *, seed: int, work: Path | None
) -> Fitted:
    plain = IntervenedModel.plain(anatomy.model, tokenizer)
    judge = data.judge.with_model(plain)
    generate = anatomy.generate if isinstance(anatomy, RunElsewhere) else rollouts
    extractions, found = {}, {}
    for trait in data.traits:
        extractions[trait.name] = extract(
            spec, trait, plain, judge, seed=seed, do=_at_once, generate=generate
        )
        found[trait.name] = vectors_of(spec, trait, extractions[trait.name], anatomy, tokenizer)
    tensors = {k: v for trait in data.traits for k, v in named_tensors(trait, found[trait.name]).items()}
    return Fitted(
        tensors,
        provenance_of(spec, judge.describe(scored(data.traits)), data.traits, extractions, found, seed=seed),
        {
            (name, SITE, layer): reason
            for name, vectors in found.items()
            for layer, reason in without_direction(vectors).items()
        },
    )


def _given(spec: PersonaSpec, data: Any) -> PersonaData:
    if not isinstance(data, PersonaData):
        raise SubveneError(
            "data: persona vectors are made of the answers that the model itself gives, found "
            f"{type(data).__name__}; declare traits (`fit.traits`: names, or files of instructions and "
            "questions)"
        )
    return data


PERSONA = Recipe(read_data, _given, check, _reach, _sha256, _fit)
