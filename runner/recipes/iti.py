"""Inference-time intervention (Li et al. 2023, arXiv:2306.03341): probe every head, shift the best ones.

A head's probe tells true from false answers by its activation at the end of `Q: … A: …`. The heads whose
probes are best on questions held out are shifted along θ̂, the unit difference of the mean activations of true
and false answers, by α·σ, σ being how far activations spread along θ̂ where a text goes on after an answer.

Of the published code this differs in four things. Heads are ranked by cross-validation, where that has one
split (`ranking: split`). σ comes from the tuning questions alone, where that takes all questions, those of
the test fold among them. Equally good probes are ranked by layer and head, where that leaves them to a sort.
And which question follows an answer for σ is settled by what the two say, so that every seed reads the same
texts.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from subvene.interventions import Sizes
from subvene.runner.data.text import pad_id_of
from subvene.runner.data.truthfulqa.questions import Question, data_sha256, given_questions, load_questions
from subvene.runner.data.truthfulqa.splits import ranking_folds, validation_keys
from subvene.runner.edits.not_finite import ADVICE_OF_MODEL, NotFiniteError
from subvene.runner.files.json_value import Json
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.collector import Collected, collect
from subvene.runner.recipes.base import Fitted, Reach, Recipe, listed_heads
from subvene.runner.recipes.iti_passages import TuningAnswer, passages
from subvene.runner.recipes.probes import Kind, Probes, fit_probes
from subvene.specs import ITISpec, SubveneError, tensor_name
from subvene.specs.recipes.iti import ListedHeads, RandomHeads, SoftHeads, TopHeads

SITE: Final = "attention_heads"
# Streams of random numbers that one seed gives rise to.
_HEADS, _DIRECTIONS = 0, 1


class ITIError(SubveneError, ValueError):
    """These questions, or what was found with them, give no directions."""


def fit_iti(
    spec: ITISpec,
    questions: Sequence[Question],
    anatomy: Anatomy,
    tokenizer: Any,
    *,
    seed: int,
    work: Path | None = None,
) -> Fitted:
    """Fit directions, their σ and probes for chosen heads.

    Args:
        spec: the recipe.
        questions: the tuning questions, in any order; nothing else is seen.
        anatomy: of the model.
        tokenizer: the model's.
        seed: of the train/validation split, and of heads and directions that are drawn at random.
        work: folder where activations and probes are kept by content; None: nothing is kept.

    Raises:
        ITIError: the questions, or what was found with them, give no directions.
    """
    _reach(spec, anatomy.sizes)
    sizes = anatomy.sizes
    with tempfile.TemporaryDirectory() if work is None else nullcontext(work) as folder:
        # 1. to 3. What the heads do at the end of every answer, and how well it tells true from false.
        answers, folds, activations, probes = answers_probed(
            spec, questions, anatomy, tokenizer, seed=seed, folder=Path(folder)
        )
        kept = Path(folder) / "probes"
        ranking = probes
        if spec.probe != "linear":
            ranking = _probes(activations, answers, folds, sizes.n_heads, spec.probe, seed, kept)
        # 4. The heads, each with the weight of its direction.
        asked = [answer.is_true for answer, fold in zip(answers, folds, strict=True) if fold >= 0]
        chance = max(asked.count(True), asked.count(False)) / len(asked)
        weights = _select(spec, ranking.accuracy, chance, seed)
        # 5. Their directions and how far activations spread along them.
        is_true = torch.tensor([answer.is_true for answer in answers])
        by_layer = {
            layer: _shifted(spec, activations, probes, is_true, layer, weights[layer], seed)
            for layer in range(sizes.n_layers)
            if weights[layer].any()
        }
    tensors = _tensors(spec, by_layer)
    way = activations.way if activations.note is None else f"{activations.way} ({activations.note})"
    about = {
        "recipe": spec.recipe,
        "key": spec.key,
        "site": SITE,
        "data_sha256": data_sha256(questions),
        **_counts(answers, folds),
        "seed": seed,
        **_settings(spec),
        "chance": round(chance, 6),
        "validation_accuracy": [[round(a, 6) for a in row] for row in ranking.accuracy.tolist()],
        "heads": {str(layer): found.heads for layer, found in by_layer.items() if found.heads},
        "sigma": {str(layer): found.of_heads(found.parts["sigma"]) for layer, found in by_layer.items()},
        "norms": {str(layer): found.of_heads(found.norms) for layer, found in by_layer.items()},
        "shared_prefixes": way,
    }
    return Fitted(tensors, about)


def answers_probed(
    spec: ITISpec,
    questions: Sequence[Question],
    anatomy: Anatomy,
    tokenizer: Any,
    *,
    seed: int,
    folder: Path,
) -> tuple[list[TuningAnswer], list[int], Collected, Probes]:
    """Every answer to some questions, its fold, the heads' activations, and a linear probe for every head.

    Args:
        spec: the recipe.
        questions: whose answers, in any order.
        anatomy: of the model.
        tokenizer: the model's.
        seed: of the folds.
        folder: where activations and probes are kept by content.
    """
    # 1. Every answer, true and false.
    answers = answers_of(questions)
    # 2. The heads' activations at the end of each answer, and once more after another question.
    activations = collect(
        anatomy,
        SITE,
        range(anatomy.sizes.n_layers),
        passages(answers, tokenizer, spec),
        folder / "activations",
        pad_id=pad_id_of(tokenizer),
        batch_size=spec.batch_size,
        description=f"fitting {spec.key}: activations",
    )
    # 3. A probe for every head; linear ones in any case, for strengths that watch themselves.
    folds = _folds(spec, answers, seed)
    kept = folder / "probes"
    probes = _probes(activations, answers, folds, anatomy.sizes.n_heads, "linear", seed, kept)
    return answers, folds, activations, probes


def _settings(spec: ITISpec) -> dict[str, Json]:
    """How it was fitted, for a provenance."""
    return {
        "select": spec.select.model_dump(mode="json"),
        "direction": spec.direction,
        "probe": spec.probe,
        "last_n": spec.last_n,
        "direction_last_n": spec.direction_last_n or spec.last_n,
        "periods": spec.periods,
        "ranking": spec.ranking,
    }


def _tensors(spec: ITISpec, by_layer: Mapping[int, _Shifted]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for layer, found in by_layer.items():
        if found.heads:
            name = tensor_name(spec.key, SITE, layer)
            tensors |= {name: found.directions} | {f"{name}.{k}": part for k, part in found.parts.items()}
    if not tensors:
        raise ITIError(f"fit.select: no head that {spec.select.rule} chooses has a direction")
    return tensors


def _counts(answers: Sequence[TuningAnswer], folds: Sequence[int]) -> dict[str, Json]:
    """Which questions the fit saw, and how many."""
    ranked = {answer.question.key for answer, fold in zip(answers, folds, strict=True) if fold >= 0}
    keys = sorted({answer.question.key for answer in answers})
    return {
        "tuning_keys_sha256": hashlib.sha256("\n".join(keys).encode()).hexdigest(),
        "questions": len(keys),
        "validation_questions": len(ranked),
        "ranking_folds": max(folds) + 1,
        "pairs": len(answers),
        "true_pairs": sum(answer.is_true for answer in answers),
    }


def answers_of(questions: Sequence[Question]) -> list[TuningAnswer]:
    """Every answer to every question, in an order that their content alone gives."""
    ordered = sorted(questions, key=lambda question: question.key)
    if len({question.key for question in ordered}) < len(ordered):
        raise ITIError("fit.data: expected every question once, found some twice")
    if len(ordered) < 2:
        raise ITIError(f"fit.data: expected at least 2 questions to fit on, found {len(ordered)}")
    return [
        TuningAnswer(question, text, is_true)
        for question in ordered
        for texts, is_true in ((question.correct, True), (question.incorrect, False))
        for text in texts
    ]


def _folds(spec: ITISpec, answers: Sequence[TuningAnswer], seed: int) -> list[int]:
    """The fold of each answer in which probes that have not learnt from it are asked about it; -1 for none.

    Raises:
        ITIError: some probes would learn from true answers alone, or from false ones.
    """
    questions = list({answer.question.key: answer.question for answer in answers}.values())
    if spec.ranking == "split":
        held_out = validation_keys(questions, spec.validation, seed)
        of_question = {q.key: 0 if q.key in held_out else -1 for q in questions}
        share = "another share of them in fit.validation"
        ranks = "rank the heads (fit.validation)"
    else:
        if len(questions) < spec.ranking_folds:
            raise ITIError(
                f"fit.ranking_folds: expected at most as many folds as questions, {len(questions)}, found "
                f"{spec.ranking_folds}"
            )
        of_question = ranking_folds([q.key for q in questions], spec.ranking_folds, seed)
        share, ranks = "another number of folds in fit.ranking_folds", "rank the heads"
    folds = [of_question[answer.question.key] for answer in answers]
    parts = [(ranks, [a.is_true for a, fold in zip(answers, folds, strict=True) if fold >= 0])]
    parts += [
        ("train the probes", [a.is_true for a, own in zip(answers, folds, strict=True) if own != fold])
        for fold in range(max(folds, default=-1) + 1)
    ]
    for part, labels in reversed(parts):
        n_true = sum(labels)
        if not 0 < n_true < len(labels):
            raise ITIError(
                f"fit.data: the questions that {part} need true and false answers, found {n_true} true and "
                f"{len(labels) - n_true} false; give more questions, or {share}"
            )
    return folds


def _probes(
    activations: Collected,
    answers: Sequence[TuningAnswer],
    folds: Sequence[int],
    n_heads: int,
    kind: Kind,
    seed: int,
    folder: Path,
) -> Probes:
    labels = [answer.is_true for answer in answers]
    rows = activations.first_rows
    return fit_probes(activations, rows, labels, folds, n_heads, kind=kind, seed=seed, folder=folder)


def _select(spec: ITISpec, accuracy: torch.Tensor, chance: float, seed: int) -> torch.Tensor:
    """The weight of each head's direction, float64 [n_layers, n_heads]; 0 where it is left alone."""
    select, count = spec.select, accuracy.numel()
    weights = torch.zeros(count, dtype=torch.float64)
    if isinstance(select, TopHeads):
        # Stable: of equally good heads the one of the lower layer and number comes first.
        weights[accuracy.flatten().argsort(descending=True, stable=True)[: select.k]] = 1
    elif isinstance(select, RandomHeads):
        own_seed = seed if select.seed is None else select.seed
        drawn = np.random.default_rng([own_seed, _HEADS]).permutation(count)
        weights[torch.from_numpy(drawn)[: select.k]] = 1
    elif isinstance(select, ListedHeads):
        for layer, heads in select.heads.items():
            for head in heads:
                weights[layer * accuracy.shape[1] + head] = 1
    elif isinstance(select, SoftHeads):
        best = float(accuracy.max())
        if best <= chance:
            raise ITIError(
                f"fit.select: no head's probe is better than chance ({chance:.3f}); the best one is right in "
                f"{best:.3f} of the answers that it was not fitted on"
            )
        weights = ((accuracy.flatten() - chance) / (best - chance)).clamp_min(0) ** select.power
    else:
        weights[:] = 1
    return weights.view(accuracy.shape)


@dataclass(frozen=True)
class _Shifted:
    """What one layer gives; zero at heads that are left alone.

    Attributes:
        heads: those that are shifted.
        directions: [n_heads, head_dim].
        norms: [n_heads], of the directions before they were made unit.
        parts: what stands beside the directions: `sigma`, `probe_weight`, `probe_bias`.
    """

    heads: list[int]
    directions: torch.Tensor
    norms: torch.Tensor
    parts: dict[str, torch.Tensor]

    def of_heads(self, values: torch.Tensor) -> dict[str, float]:
        """Head → value, for a provenance."""
        return {str(head): round(float(values[head]), 6) for head in self.heads}


def _shifted(
    spec: ITISpec,
    activations: Collected,
    probes: Probes,
    is_true: torch.Tensor,
    layer: int,
    weights: torch.Tensor,
    seed: int,
) -> _Shifted:
    """Directions, σ and probes of the heads of a layer that have a weight."""
    n_heads, head_dim = probes.weight.shape[1:]
    rows, h = torch.tensor(activations.first_rows), activations.read(layer).double()
    # The rows of an answer: what probes read, what directions read where it is another, and after a question.
    own = int(spec.direction_last_n is not None)
    at_end, after_question = (h[some].view(-1, n_heads, head_dim) for some in (rows + own, rows + own + 1))
    if spec.direction == "mass_mean":
        # Over all tuning questions, as in the published code: those that rank the heads among them.
        directions = at_end[is_true].mean(0) - at_end[~is_true].mean(0)
    elif spec.direction == "probe_weight":
        directions = probes.weight[layer].double()
    else:
        # Of each layer on its own: which heads are chosen changes no other head's direction.
        drawn = np.random.default_rng([seed, _DIRECTIONS, layer]).standard_normal((n_heads, head_dim))
        directions = torch.from_numpy(drawn)
    norms = directions.norm(dim=1)
    has_weight = weights > 0
    without = (has_weight & (norms == 0)).nonzero().squeeze(1).tolist()
    if without and spec.select.rule not in ("all", "soft"):
        raise ITIError(
            f"fit.select: {SITE}[{layer}]: heads {without} do the same in true and in false answers, so "
            f"{spec.direction} gives them no direction; choose others"
        )
    chosen = has_weight & (norms > 0)
    if not bool(torch.isfinite(norms[has_weight]).all()):
        raise NotFiniteError(
            f"fit.select: {SITE}[{layer}]: the heads' activations are not finite; {ADVICE_OF_MODEL}",
            of_model=True,
        )
    unit = torch.where(chosen.unsqueeze(1), directions / norms.unsqueeze(1), 0.0)
    # The published code's np.std: divided by the number of texts.
    sigma = torch.einsum("thd,hd->th", after_question, unit).std(0, correction=0)
    flat = (chosen & (sigma.float() == 0)).nonzero().squeeze(1).tolist()
    if flat and spec.select.rule not in ("all", "soft"):
        raise ITIError(
            f"fit.select: {SITE}[{layer}]: the activations of heads {flat} do not spread along their "
            "direction (σ = 0), so that no strength would move them; choose others, or fit on more questions"
        )
    chosen = chosen & (sigma.float() > 0)
    unit, sigma = unit * chosen.unsqueeze(1), sigma * chosen
    parts = {
        "sigma": sigma.float(),
        "probe_weight": probes.weight[layer] * chosen.unsqueeze(1),
        "probe_bias": probes.bias[layer] * chosen,
    }
    heads = chosen.nonzero().squeeze(1).tolist()
    return _Shifted(heads, (unit * weights.unsqueeze(1)).float(), norms, parts)


def _read(spec: ITISpec, folder: Path) -> list[Question]:
    return load_questions(spec.data, folder)


def _given(spec: ITISpec, data: Any) -> list[Question]:
    return given_questions(data)


def _check(spec: ITISpec, questions: Sequence[Question], seed: int) -> None:
    _folds(spec, answers_of(questions), seed)


def _reach(spec: ITISpec, sizes: Sizes) -> Reach:
    select = spec.select
    k = select.k if isinstance(select, TopHeads | RandomHeads) else None
    listed = select.heads if isinstance(select, ListedHeads) else None
    heads = listed_heads("fit.select", k, listed, sizes)
    return Reach(SITE, frozenset(heads) if heads is not None else None, heads, frozenset({"head_direction"}))


def _sha256(questions: Sequence[Question]) -> str:
    return data_sha256(questions, periods=True)


ITI = Recipe(_read, _given, _check, _reach, _sha256, fit_iti)
