"""Localized edits (Wang and Veitch 2025, "Does Editing Provide Evidence for Localization?").

The best edit that a set of heads allows is found by alignment: low-rank factors at those heads, trained on
preferences. What it reaches is what the heads can be made to do, whether or not a heuristic picked them.

Several edits on the same data train together (`fit_localized_edits`), each as if it were alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from subvene.interventions import Sizes
from subvene.runner.data.examples import Example, Keyed, split
from subvene.runner.data.preferences import Data, encode, preferences_sha256
from subvene.runner.data.text import pad_id_of
from subvene.runner.files.json_value import Json
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes.base import Fitted, Reach, Recipe, listed_heads
from subvene.runner.recipes.iti import SITE
from subvene.runner.recipes.localized_heads import LocalizedEditError, Probed, choose_heads, probe_heads
from subvene.runner.recipes.trained import (
    check_sides,
    given_trained,
    provenance_of,
    read_trained,
    refuse_zero,
)
from subvene.runner.training.experiments import Experiment, Trained
from subvene.runner.training.multiplex import EditShape
from subvene.runner.training.trainer import train_edits
from subvene.specs import tensor_name
from subvene.specs.recipes.iti import ListedHeads
from subvene.specs.recipes.localized_edit import DrawnHeads, LocalizedEditSpec, ProbedHeads


@dataclass(frozen=True)
class Request:
    """One edit among several that are to be trained together.

    Attributes:
        name: what progress and errors call it.
        spec: its recipe; all requests of a call have the same `data`.
        seed: the experiment's; the spec's own, if it has one, goes before it.
    """

    name: str
    spec: LocalizedEditSpec
    seed: int

    @property
    def own_seed(self) -> int:
        """The seed that is used."""
        return self.spec.own_seed(self.seed)


def fit_localized_edits(
    requests: Sequence[Request],
    data: Data,
    anatomy: Anatomy,
    tokenizer: Any,
    *,
    work: Path | None = None,
    probed: Probed | None = None,
) -> list[Fitted]:
    """Train several edits on the same preferences in one job.

    Args:
        requests: the edits.
        data: triples, or the tuning questions of TruthfulQA.
        anatomy: of the model.
        tokenizer: the model's.
        work: folder where activations, probes and checkpoints are kept by content; None: nothing is kept.
        probed: what the heads' probes gave, if that is known; None: they are probed where a request asks.

    Returns:
        For each request its tensors (`{key}.attention_heads[l].a` and `.b`; of a constant edit
        `{key}.attention_heads[l]`) and its provenance.

    Raises:
        LocalizedEditError: too few questions, or requests on different data.
        TrainingError: a loss was not finite.
    """
    if any(request.spec.data != requests[0].spec.data for request in requests):
        raise LocalizedEditError("edits that train together need the same `data`")
    for request in requests:
        _reach(request.spec, anatomy.sizes)
        _check(request.spec, data, request.seed)
    # 1. Every pair as token ids.
    examples = encode(requests[0].spec.data, data, tokenizer)
    # 2. The heads of each edit; probes are fitted once for each way of holding questions out.
    found: dict[tuple[str, int], Probed] = {}
    experiments = []
    for request in requests:
        spec, seed, by = request.spec, request.own_seed, None
        if isinstance(spec.heads, ProbedHeads):
            way = _way(spec.heads, request.seed)
            if way not in found:
                found[way] = probed or probe_heads(
                    spec.heads, data, examples, anatomy, tokenizer, seed=request.seed, work=work
                )
            by = found[way]
        heads = choose_heads(spec, anatomy.sizes, request.seed, by)
        shape = EditShape(heads, spec.read_heads, spec.rank, spec.per, spec.gate, seed)
        train, validation = split(examples, spec.validation, seed)
        experiments.append(Experiment(request.name, spec, shape, seed, train, validation))
    # 3. All of them together; what comes out is what each alone would give.
    trained = train_edits(
        anatomy,
        examples,
        experiments,
        pad_id=pad_id_of(tokenizer),
        folder=None if work is None else work / "training",
        description=f"training {requests[0].spec.key}",
    )
    # 4. Tensors under their names, and how they came about.
    return [
        Fitted(
            _tensors(request.spec, result, anatomy.sizes),
            provenance_of(request.spec, SITE, data, experiment, examples, result)
            | _of_heads(request.spec, experiment, _used(request, found)),
        )
        for request, experiment, result in zip(requests, experiments, trained, strict=True)
    ]


def lora_experiment(request: Request, examples: Sequence[Example], sizes: Sizes) -> Experiment:
    """A LoRA on the pairs of an edit, in the same order, with the same questions held out.

    Args:
        request: of an edit; its heads do not matter.
        examples: every pair as token ids.
        sizes: of the model.
    """
    spec, seed = request.spec, request.own_seed
    every = {layer: tuple(range(sizes.n_heads)) for layer in range(sizes.n_layers)}
    shape = EditShape(every, spec.read_heads, spec.rank, spec.per, spec.gate, seed)
    train, validation = split(examples, spec.validation, seed)
    return Experiment(request.name, spec, shape, seed, train, validation)


def _way(rule: ProbedHeads, seed: int) -> tuple[str, int]:
    """What probes depend on, beside the data."""
    return rule.model_dump_json(exclude={"k", "batch_size"}), seed


def _used(request: Request, found: dict[tuple[str, int], Probed]) -> Probed | None:
    rule = request.spec.heads
    return found[_way(rule, request.seed)] if isinstance(rule, ProbedHeads) else None


def _tensors(spec: LocalizedEditSpec, trained: Trained, sizes: Sizes) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, factor in trained.factors.items():
        layer, part = name.split(".")
        if spec.gate == "constant":
            shift = factor.sum(0).view(sizes.n_heads, sizes.head_dim)
            tensors[tensor_name(spec.key, SITE, int(layer))] = shift
        else:
            tensors[tensor_name(spec.key, SITE, int(layer), part)] = factor.contiguous()
    return tensors


def _of_heads(spec: LocalizedEditSpec, experiment: Experiment, probed: Probed | None) -> dict[str, Json]:
    """What is told of an edit at heads beyond what is told of any training."""
    about: dict[str, Json] = {
        "select": spec.heads.model_dump(mode="json", exclude={"heads"}),
        "heads": {str(layer): list(heads) for layer, heads in sorted(experiment.shape.heads.items())},
        "read_heads": spec.read_heads,
        "rank": spec.rank,
        "per": spec.per,
        "gate": spec.gate,
    }
    if probed is not None:
        about["chance"] = round(probed.chance, 6)
        about["validation_accuracy"] = [[round(a, 6) for a in row] for row in probed.accuracy.tolist()]
    return about


def _check(spec: LocalizedEditSpec, data: Data, seed: int) -> None:
    """There are questions on every side that the spec asks for."""
    check_sides(spec, data, seed, LocalizedEditError)
    keyed: Sequence[Keyed] = data
    if isinstance(spec.heads, ProbedHeads) and not all(split(keyed, spec.heads.validation, seed)):
        raise LocalizedEditError(
            f"fit.heads.validation: {spec.heads.validation} of {len({one.key for one in keyed})} questions "
            "leaves none on one side; give more questions, or another share"
        )


def _reach(spec: LocalizedEditSpec, sizes: Sizes) -> Reach:
    rule = spec.heads
    k = rule.k if isinstance(rule, ProbedHeads | DrawnHeads) else None
    listed = rule.heads if isinstance(rule, ListedHeads) else None
    heads = listed_heads("fit.heads", k, listed, sizes)
    kind = "low_rank_edit" if spec.gate == "adaptive" else "head_direction"
    return Reach(SITE, frozenset(heads) if heads is not None else None, heads, frozenset({kind}))


def _fit(
    spec: LocalizedEditSpec,
    data: Data,
    anatomy: Anatomy,
    tokenizer: Any,
    *,
    seed: int,
    work: Path | None,
) -> Fitted:
    (fitted,) = fit_localized_edits([Request(spec.key, spec, seed)], data, anatomy, tokenizer, work=work)
    written = [t for name, t in fitted.tensors.items() if spec.gate == "constant" or name.endswith(".b")]
    refuse_zero(written, fitted.provenance, LocalizedEditError)
    return fitted


LOCALIZED_EDIT = Recipe(read_trained, given_trained, _check, _reach, preferences_sha256, _fit)
