"""The heads of a localized edit: those listed, drawn, or whose probes are best."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
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
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.collector import collect
from subvene.runner.passes.passages import Passage, last
from subvene.runner.recipes.iti import SITE, fit_iti
from subvene.runner.recipes.probes import fit_probes
from subvene.specs import ITISpec, SubveneError
from subvene.specs.recipes.iti import AllHeads, ListedHeads
from subvene.specs.recipes.localized_edit import DrawnHeads, LocalizedEditSpec, ProbedHeads

# The stream of random numbers that heads are drawn from: ITI's, so that one seed draws the same heads there.
_HEADS = 0


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
            how = ITISpec(
                key="probes",
                select=AllHeads(),
                validation=heads.validation,
                batch_size=heads.batch_size,
            )
            fitted = fit_iti(how, questions, anatomy, tokenizer, seed=seed, work=Path(folder))
            about = fitted.provenance
            accuracy = torch.tensor(about["validation_accuracy"], dtype=torch.float64)
            return Probed(accuracy, cast(float, about["chance"]))
        return _probe_answers(heads, examples, anatomy, tokenizer, seed, Path(folder))


def _probe_answers(
    heads: ProbedHeads,
    examples: Sequence[Example],
    anatomy: Anatomy,
    tokenizer: Any,
    seed: int,
    folder: Path,
) -> Probed:
    answers = Answers.of(examples)
    held_out = set(split(examples, heads.validation, seed)[1])
    # An answer that is wanted in one example and unwanted in another says nothing about either.
    labels: dict[int, set[bool]] = {}
    validates: dict[int, bool] = {}
    for rows, wanted in ((answers.chosen, True), (answers.rejected, False)):
        for i, row in enumerate(rows):
            labels.setdefault(row, set()).add(wanted)
            validates[row] = i in held_out
    chosen = [row for row in sorted(labels) if len(labels[row]) == 1]
    passages = [
        Passage(prompt + answer, (last(len(prompt) + len(answer)),), len(prompt))
        for prompt, answer in (answers.rows[row] for row in chosen)
    ]
    is_wanted = [True in labels[row] for row in chosen]
    is_validation = [validates[row] for row in chosen]
    for what, side in (("train the probes", False), ("rank the heads (fit.heads.validation)", True)):
        those = [wanted for wanted, own in zip(is_wanted, is_validation, strict=True) if own == side]
        if not 0 < sum(those) < len(those):
            raise LocalizedEditError(
                f"fit.data: the questions that {what} need wanted and unwanted answers, found {sum(those)} "
                f"wanted and {len(those) - sum(those)} unwanted; give more questions, or another share"
            )
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
        is_validation,
        anatomy.sizes.n_heads,
        kind="linear",
        seed=seed,
        folder=folder / "probes",
    )
    ranks = [wanted for wanted, own in zip(is_wanted, is_validation, strict=True) if own]
    return Probed(probes.accuracy, max(sum(ranks), len(ranks) - sum(ranks)) / len(ranks))


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
