"""LoReFT (Wu et al. 2024, arXiv:2404.03592): R, W and b of every layer, trained together on a frozen model.

What is trained and where that differs from the authors' code is said in `runner.training.loreft`. What comes
out needs no kind of its own: h + Rᵀ(W·h + b − R·h) is the kind `affine` of `form: low_rank`, with readers
W − R, writers R and the constant Rᵀb.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subvene.interventions import Sizes
from subvene.runner.data.examples import split
from subvene.runner.data.preferences import Data, encode, preferences_sha256
from subvene.runner.data.text import pad_id_of
from subvene.runner.edits.compile import CompileError
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes.base import Fitted, Reach, Recipe, layers_of
from subvene.runner.recipes.trained import (
    check_sides,
    given_trained,
    provenance_of,
    read_trained,
    refuse_zero,
)
from subvene.runner.training.experiments import Experiment
from subvene.runner.training.loreft import LoreftEdits
from subvene.runner.training.multiplex import EditShape
from subvene.runner.training.trainer import train_edits
from subvene.specs import ReFTSpec, SubveneError, tensor_name
from subvene.specs.recipes.reft import SITE


class ReFTError(SubveneError, ValueError):
    """A LoReFT cannot be trained; the message says what to change."""


def _fit(
    spec: ReFTSpec, data: Data, anatomy: Anatomy, tokenizer: Any, *, seed: int, work: Path | None
) -> Fitted:
    _check(spec, data, seed)
    own_seed, layers = spec.own_seed(seed), layers_of(spec.layers, anatomy.sizes)
    # 1. Every pair as token ids, whole prompts held out.
    examples = encode(spec.data, data, tokenizer)
    train, validation = split(examples, spec.validation, own_seed)
    experiment = Experiment(spec.key, spec, EditShape({}), own_seed, train, validation)
    # 2. R, W and b of all layers.
    (trained,) = train_edits(
        anatomy,
        examples,
        [experiment],
        pad_id=pad_id_of(tokenizer),
        folder=None if work is None else work / "training",
        edits=LoreftEdits(anatomy, layers, spec.rank, spec.positions, own_seed),
        description=f"training {spec.key}",
    )
    # 3. As the map of an affine edit.
    tensors = {}
    for name, tensor in trained.factors.items():
        layer, part = name.split(".")
        tensors[tensor_name(spec.key, SITE, int(layer), part)] = tensor
    told = provenance_of(spec, SITE, data, experiment, examples, trained) | {
        "layers": list(layers),
        "rank": spec.rank,
        "positions": spec.model_dump(mode="json")["positions"],
    }
    refuse_zero([tensor for name, tensor in tensors.items() if not name.endswith(".b")], told, ReFTError)
    return Fitted(tensors, told)


def _check(spec: ReFTSpec, data: Data, seed: int) -> None:
    check_sides(spec, data, seed, ReFTError)


def _reach(spec: ReFTSpec, sizes: Sizes) -> Reach:
    layers = layers_of(spec.layers, sizes)
    if spec.rank > sizes.width:
        raise CompileError(
            f"fit.rank: expected at most {sizes.width}, the width of {SITE}, found {spec.rank}"
        )
    said = {"form": "low_rank", "rank": spec.rank, "positions": spec.positions}
    return Reach(SITE, frozenset(layers), kinds=frozenset({"affine"}), fields=said)


REFT = Recipe(read_trained, given_trained, _check, _reach, preferences_sha256, _fit)
