"""The heads of a localized edit: those listed, drawn, or whose probes are best."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from subvene.interventions import Sizes
from subvene.runner.data.examples import Answers, Example, split
from subvene.runner.data.preferences import Data
from subvene.runner.data.text import pad_id_of
from subvene.runner.data.truthfulqa.questions import Question
from subvene.runner.data.truthfulqa.splits import ranking_folds
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.collector import collect
from subvene.runner.passes.passages import Passage, last
from subvene.runner.recipes.iti import SITE, answers_of, answers_probed, fit_iti
from subvene.runner.recipes.iti_passages import passages
from subvene.runner.recipes.probes import fit_probes
from subvene.specs import ITISpec, SubveneError
from subvene.specs.recipes.iti import AllHeads, ListedHeads
from subvene.specs.recipes.localized_edit import DrawnHeads, LocalizedEditSpec, ProbedHeads

# The stream of random numbers that heads are drawn from: ITI's, so that one seed draws the same heads there.
_HEADS = 0
# That matched heads are drawn from, which are no draw of others.
_MATCHED = 4


class LocalizedEditError(SubveneError, ValueError):
    """An edit cannot be trained on these preferences."""


@dataclass(frozen=True)
class Probed:
    """How well each head tells wanted from unwanted answers.

    Attributes:
        accuracy: float64 [n_layers, n_heads], on held-out questions.
        chance: the share of the commoner label there.
    """

    accuracy: torch.Tensor
    chance: float


def probe_heads(
    heads: ProbedHeads,
    data: Data,
    examples: Sequence[Example],
    anatomy: Anatomy,
    tokenizer: Any,
    *,
    seed: int,
    work: Path | None = None,
) -> Probed:
    """Probe every head: for TruthfulQA exactly as ITI does, else at the last token of every answer.

    Args:
        heads: the rule, with the share of the questions that ranks the heads.
        data: the preferences.
        examples: the same as token ids.
        anatomy: of the model.
        tokenizer: the model's.
        seed: of the split, and nothing else: the activations and ITI's own fit share it.
        work: folder where activations and probes are kept by content.
    """
    questions = [one for one in data if isinstance(one, Question)]
    with tempfile.TemporaryDirectory() if work is None else nullcontext(work) as folder:
        if questions:
            how = _as_iti(heads)
            fitted = fit_iti(how, questions, anatomy, tokenizer, seed=seed, work=Path(folder))
            about = fitted.provenance
            accuracy = torch.tensor(about["validation_accuracy"], dtype=torch.float64)
            return Probed(accuracy, cast(float, about["chance"]))
        return _probe_answers(heads, examples, anatomy, tokenizer, seed, Path(folder))


def probe_unseen(
    heads: ProbedHeads,
    questions: Sequence[Question],
    unseen: Sequence[Question],
    anatomy: Anatomy,
    tokenizer: Any,
    *,
    seed: int,
    work: Path | None = None,
) -> Probed:
    """What every head's probe gives on answers that it has not learnt from and that chose no head.

    The accuracy that chooses heads is the highest of many, and so too high for the heads that it chooses.

    Args:
        heads: the rule.
        questions: that the probes of `probe_heads` learn from.
        unseen: none of these.
        anatomy: of the model.
        tokenizer: the model's.
        seed: as for `probe_heads`.
        work: as for `probe_heads`.
    """
    how, sizes = _as_iti(heads), anatomy.sizes
    with tempfile.TemporaryDirectory() if work is None else nullcontext(work) as folder:
        _, _, _, probes = answers_probed(how, questions, anatomy, tokenizer, seed=seed, folder=Path(folder))
        answers = answers_of(unseen)
        activations = collect(
            anatomy,
            SITE,
            range(sizes.n_layers),
            passages(answers, tokenizer, how),
            Path(folder) / "activations",
            pad_id=pad_id_of(tokenizer),
            batch_size=how.batch_size,
            description="probing heads: answers that chose none",
        )
        is_true = torch.tensor([answer.is_true for answer in answers])
        rows = torch.tensor(activations.first_rows)
        accuracy = []
        for layer in range(sizes.n_layers):
            h = activations.read(layer, rows).double().view(len(rows), sizes.n_heads, sizes.head_dim)
            said = torch.einsum("thd,hd->th", h, probes.weight[layer].double()) + probes.bias[layer] > 0
            accuracy.append((said == is_true.unsqueeze(1)).double().mean(0))
    return Probed(
        torch.stack(accuracy), max(float(is_true.double().mean()), float((~is_true).double().mean()))
    )


def _as_iti(heads: ProbedHeads) -> ITISpec:
    """ITI with all heads, probed as the rule has it."""
    return ITISpec(
        key="probes",
        select=AllHeads(),
        ranking=heads.ranking,
        ranking_folds=heads.ranking_folds,
        validation=heads.validation,
        batch_size=heads.batch_size,
    )


def _probe_answers(
    heads: ProbedHeads,
    examples: Sequence[Example],
    anatomy: Anatomy,
    tokenizer: Any,
    seed: int,
    folder: Path,
) -> Probed:
    answers = Answers.of(examples)
    of_example = _folds(heads, examples, seed)
    # An answer that is wanted in one example and unwanted in another says nothing about either.
    labels: dict[int, set[bool]] = {}
    fold_of_row: dict[int, int] = {}
    for rows, wanted in ((answers.chosen, True), (answers.rejected, False)):
        for i, row in enumerate(rows):
            labels.setdefault(row, set()).add(wanted)
            fold_of_row[row] = of_example[i]
    chosen = [row for row in sorted(labels) if len(labels[row]) == 1]
    passages = [
        Passage(prompt + answer, (last(len(prompt) + len(answer)),), len(prompt))
        for prompt, answer in (answers.rows[row] for row in chosen)
    ]
    is_wanted = [True in labels[row] for row in chosen]
    folds = [fold_of_row[row] for row in chosen]
    _check_labels(is_wanted, folds)
    activations = collect(
        anatomy,
        SITE,
        range(anatomy.sizes.n_layers),
        passages,
        folder / "activations",
        pad_id=pad_id_of(tokenizer),
        batch_size=heads.batch_size,
        description="probing heads: activations",
    )
    probes = fit_probes(
        activations,
        activations.first_rows,
        is_wanted,
        folds,
        anatomy.sizes.n_heads,
        kind="linear",
        seed=seed,
        folder=folder / "probes",
    )
    ranks = [wanted for wanted, fold in zip(is_wanted, folds, strict=True) if fold >= 0]
    return Probed(probes.accuracy, max(sum(ranks), len(ranks) - sum(ranks)) / len(ranks))


def _folds(heads: ProbedHeads, examples: Sequence[Example], seed: int) -> list[int]:
    """The fold of each example in which probes that have not learnt from its question are asked; -1: none."""
    if heads.ranking == "split":
        held_out = set(split(examples, heads.validation, seed)[1])
        return [0 if i in held_out else -1 for i in range(len(examples))]
    keys = {example.key for example in examples}
    if len(keys) < heads.ranking_folds:
        raise LocalizedEditError(
            f"fit.heads.ranking_folds: expected at most as many folds as questions, {len(keys)}, found "
            f"{heads.ranking_folds}"
        )
    folds = ranking_folds(keys, heads.ranking_folds, seed)
    return [folds[example.key] for example in examples]


def _check_labels(is_wanted: Sequence[bool], folds: Sequence[int]) -> None:
    """Check that probes learn from both kinds of answers, and are asked about both."""
    rows = list(zip(is_wanted, folds, strict=True))
    parts = [("train the probes", [w for w, own in rows if own != fold]) for fold in range(max(folds) + 1)]
    parts.append(("rank the heads (fit.heads)", [wanted for wanted, fold in rows if fold >= 0]))
    for what, those in parts:
        if not 0 < sum(those) < len(those):
            raise LocalizedEditError(
                f"fit.data: the questions that {what} need wanted and unwanted answers, found {sum(those)} "
                f"wanted and {len(those) - sum(those)} unwanted; give more questions, or another share"
            )


def matched_heads(like: Mapping[int, Sequence[int]], sizes: Sizes, seed: int) -> dict[int, tuple[int, ...]]:
    """Heads drawn at random, as many of every layer as a set has: layer → heads.

    Any set of such numbers is as likely as any other, `like` itself among them.

    Args:
        like: the set, layer → heads.
        sizes: of the model.
        seed: of the draw.
    """
    drawn = np.random.default_rng([seed, _MATCHED])
    return {
        layer: tuple(sorted(drawn.permutation(sizes.n_heads)[: len(heads)].tolist()))
        for layer, heads in sorted(like.items())
    }


def choose_heads(
    spec: LocalizedEditSpec, sizes: Sizes, seed: int, probed: Probed | None = None
) -> dict[int, tuple[int, ...]]:
    """Layer → the heads that an edit writes to.

    Args:
        spec: the recipe.
        sizes: of the model.
        seed: the experiment's, for heads that are drawn without a seed of their own.
        probed: what the probes gave; needed by `probed`.
    """
    rule, count = spec.heads, sizes.n_layers * sizes.n_heads
    if isinstance(rule, ListedHeads):
        return {layer: tuple(sorted(heads)) for layer, heads in sorted(rule.heads.items())}
    if isinstance(rule, ProbedHeads):
        if probed is None:
            raise ValueError("heads are chosen by their probes, and there are none")
        # Stable, as ITI ranks them: of equally good heads the one of the lower layer and number comes first.
        order = probed.accuracy.flatten().argsort(descending=True, stable=True)[: rule.k].tolist()
    elif isinstance(rule, DrawnHeads):
        own = seed if rule.seed is None else rule.seed
        order = np.random.default_rng([own, _HEADS]).permutation(count)[: rule.k].tolist()
    else:
        order = list(range(count))
    heads: dict[int, tuple[int, ...]] = {}
    for place in sorted(order):
        layer, head = divmod(int(place), sizes.n_heads)
        heads[layer] = (*heads.get(layer, ()), head)
    return heads
