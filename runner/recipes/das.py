"""Distributed alignment search: a rotation at every cell of a grid of layers and places.

Geiger et al., 2024, "Finding Alignments Between Interpretable Causal Variables and Distributed Neural
Representations"; Wu et al., 2023, for the boundless class.

At every cell of a grid of layers and places, a rotation is trained so that swapping its first dimensions
between a source and a base makes the frozen model go on with the base as the counterfactual label says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from subvene.interventions import Sizes
from subvene.interventions.rotation import stored_state
from subvene.runner.data.counterfactuals import (
    Counterfactual,
    CounterfactualError,
    CounterfactualTokens,
    Sides,
    counterfactual_tokens,
    counterfactuals_sha256,
    given_counterfactuals,
    read_counterfactuals,
    sides_of,
)
from subvene.runner.data.limits import refuse_beyond_context
from subvene.runner.data.text import pad_id_of
from subvene.runner.edits.compile import CompileError
from subvene.runner.files.json_value import Json
from subvene.runner.files.progress import track
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.devices import input_device
from subvene.runner.passes.interchange import Interchanges
from subvene.runner.passes.swaps import LayerSwaps
from subvene.runner.recipes.base import Fitted, Reach, Recipe, layers_of
from subvene.runner.training.passes import frozen
from subvene.runner.training.rotations import TrainedCell, train_cells
from subvene.specs.recipes.das import DASSpec

_PASS_TOKENS = {"cpu": 4096}
_PASS_TOKENS_ELSEWHERE = 16384


@dataclass(frozen=True, eq=False)
class Prepared:
    """The rows of a fit on a loaded model.

    Attributes:
        tokens: of every row.
        runs: their bases and sources.
        sides: by the split alone.
        answers: Long[answers], every token that is an answer in the data.
    """

    tokens: Sequence[CounterfactualTokens]
    runs: Interchanges
    sides: Sides
    answers: torch.Tensor

    def known(self, spec: DASSpec) -> torch.Tensor:
        """Bool[rows], the rows whose own answers are the model's; all of them unless the spec asks."""
        known = torch.ones(len(self.tokens), dtype=torch.bool)
        if not spec.known:
            return known
        for name, best in zip(("base_label", "source_label"), self.best, strict=True):
            wanted = [getattr(one, name) for one in self.tokens]
            pairs = zip(wanted, best.tolist(), strict=True)
            known &= torch.tensor([one is None or one == found for one, found in pairs])
        return known

    @property
    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Long[rows] each: the likeliest answer behind each base, and behind each source."""
        return self.runs.said("base"), self.runs.said("source")

    def used(self, spec: DASSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Long[n] each: the rows that are trained on, and those that are held out.

        Raises:
            CounterfactualError: the model knows none of one side.
        """
        known = self.known(spec)
        train, test = (
            torch.tensor([i for i in side if known[i]], dtype=torch.long)
            for side in (self.sides.train, self.sides.test)
        )
        for name, rows in (("trained on", train), ("held out", test)):
            if not len(rows):
                raise CounterfactualError(
                    f"fit.known: of the rows that are {name}, the model goes on with none as the data say; "
                    "give others, or set `known: false`"
                )
        return train, test

    @property
    def labels(self) -> torch.Tensor:
        """Long[rows], on the model's device."""
        return torch.tensor([one.label for one in self.tokens], device=self.answers.device)


def prepared(
    spec: DASSpec, data: Sequence[Counterfactual], anatomy: Anatomy, tokenizer: Any, seed: int
) -> Prepared:
    """The rows as tokens, split, with the places of every cell found in them; nothing has run yet.

    Args:
        spec: the recipe.
        data: all rows.
        anatomy: of the model.
        tokenizer: the model's.
        seed: the experiment's.

    Raises:
        TextError: a text is too long, or an answer has no token of its own.
        PositionError: a place is not in a row.
    """
    tokens = counterfactual_tokens(data, spec.data, tokenizer)
    model = cast(Any, anatomy.model)
    for name in ("base", "source"):
        lengths = [len(getattr(one, name)) for one in tokens]
        refuse_beyond_context(model, lengths, partial(_where, tokens, name))
    said = {answer for one in tokens for answer in (one.label, one.base_label, one.source_label)}
    answers = torch.tensor(
        sorted(answer for answer in said if answer is not None), device=input_device(model)
    )
    runs = Interchanges(
        anatomy,
        tokenizer,
        [one.base for one in tokens],
        [one.source for one in tokens],
        [one.row.columns for one in tokens],
        site=spec.site,
        places=spec.places,
        pad_id=pad_id_of(tokenizer),
        pass_tokens=pass_tokens_of(spec, model),
        answers=answers,
    )
    return Prepared(tokens, runs, sides_of(data, spec.split, spec.own_seed(seed)), answers)


def _where(tokens: Sequence[CounterfactualTokens], name: str, i: int) -> str:
    return f"{tokens[i].row.where}: {name}"


def pass_tokens_of(spec: DASSpec, model: Any) -> int:
    """Most tokens of a pass."""
    return spec.pass_tokens or _PASS_TOKENS.get(input_device(model).type, _PASS_TOKENS_ELSEWHERE)


def fit_das(
    spec: DASSpec, data: Sequence[Counterfactual], anatomy: Anatomy, tokenizer: Any, *, seed: int
) -> Fitted:
    """Train every cell of the grid.

    Args:
        spec: the recipe.
        data: all rows; those that are held out are not trained on.
        anatomy: of the model.
        tokenizer: the model's.
        seed: the experiment's; the spec's own, if it has one, goes before it.

    Returns:
        Of each cell its state, `{key}.{site}[{layer}].{place}.rotation` and what else its class has, and how
        they came about.
    """
    layers = layers_of(spec.layers, anatomy.sizes)
    with frozen(cast(Any, anatomy.model)):
        # 1. Bases and sources, run once; what reaches each layer is kept.
        made = prepared(spec, data, anatomy, tokenizer, seed)
        made.runs.plan(layers)
        # 2. The cells of a layer together.
        bar = track(layers, f"training {spec.key}")
        return together(
            [
                fit_layer(spec, data, made, swaps, seed)
                for _, swaps in zip(bar, made.runs.at(layers), strict=True)
            ]
        )


def fit_layer(
    spec: DASSpec, data: Sequence[Counterfactual], made: Prepared, swaps: LayerSwaps, seed: int
) -> Fitted:
    """Train the cells of one layer, on the rows that the model itself goes on with as the data say.

    Args:
        spec: the recipe.
        data: all rows.
        made: of them.
        swaps: the layer's.
        seed: the experiment's.
    """
    train, test = made.used(spec)
    before = swaps.computed
    trained = train_cells(
        swaps,
        spec,
        made.labels,
        train,
        seed=spec.own_seed(seed),
        pass_tokens=made.runs.pass_tokens,
        width=made.runs.anatomy.sizes.site_width(spec.site),
    )
    tensors = {
        f"{spec.cell_key(swaps.layer, place)}.{name}": value.detach().cpu().contiguous()
        for place, cell in trained.items()
        for name, value in stored_state(cell.inner).items()
    }
    cells: dict[str, Json] = {
        spec.cell_key(swaps.layer, place): _about(spec, cell, swaps.swaps[place].equal)
        for place, cell in trained.items()
    }
    own_seed, computed = spec.own_seed(seed), swaps.computed - before
    return Fitted(tensors, _provenance(spec, made, data, own_seed, train, test, cells, computed))


def together(layers: Sequence[Fitted]) -> Fitted:
    """The fit of a grid, of those of its layers."""
    tensors: dict[str, torch.Tensor] = {}
    cells: dict[str, Json] = {}
    for one in layers:
        tensors |= one.tensors
        cells |= cast(dict[str, Json], one.provenance["cells"])
    computed = sum(cast(int, one.provenance["computed"]) for one in layers)
    return Fitted(tensors, layers[-1].provenance | {"cells": cells, "computed": computed})


def _about(spec: DASSpec, cell: TrainedCell, equal: float) -> dict[str, Json]:
    per_epoch = len(cell.losses) // spec.epochs
    epochs = [cell.losses[i * per_epoch : (i + 1) * per_epoch] for i in range(spec.epochs)]
    found: dict[str, Json] = {
        "epoch_losses": [round(sum(losses) / len(losses), 6) for losses in epochs],
        "equal": round(equal, 6),
    }
    if (boundary := getattr(cell.inner, "intervention_boundaries", None)) is not None:
        found["boundary"] = round(float(boundary), 6)
    return found


def _provenance(
    spec: DASSpec,
    made: Prepared,
    data: Sequence[Counterfactual],
    seed: int,
    train: torch.Tensor,
    test: torch.Tensor,
    cells: dict[str, Json],
    computed: int,
) -> dict[str, Json]:
    sides = made.sides
    return {
        "recipe": spec.recipe,
        "key": spec.key,
        "class": spec.class_name,
        "rank": spec.rank,
        "site": spec.site,
        "data_sha256": counterfactuals_sha256(data),
        "rows": len(data),
        "trained_on": len(train),
        "held_out": len(test),
        "straddling": len(sides.straddling),
        "not_known": len(sides.train) + len(sides.test) - len(train) - len(test),
        "split_by": list(spec.split.by),
        "held_out_values": list(sides.held_out),
        "seed": seed,
        "learning_rate": spec.learning_rate,
        "epochs": spec.epochs,
        "batch_size": spec.batch_size,
        "cells": cells,
        "computed": computed,
        "note": made.runs.note,
    }


def _read(spec: DASSpec, folder: Path) -> list[Counterfactual]:
    return read_counterfactuals(spec.data, folder)


def _given(spec: DASSpec, data: Any) -> list[Counterfactual]:
    return given_counterfactuals(spec.data, data)


def _check(spec: DASSpec, data: Sequence[Counterfactual], seed: int) -> None:
    """There are rows on both sides of the split."""
    sides_of(data, spec.split, spec.own_seed(seed))


def _reach(spec: DASSpec, sizes: Sizes) -> Reach:
    layers = layers_of(spec.layers, sizes)
    width = sizes.site_width(spec.site)
    if spec.swapped > width:
        raise CompileError(
            f"fit.rank: expected at most {width}, the width of {spec.site}, found {spec.swapped}"
        )
    return Reach(spec.site, frozenset(layers), None, frozenset({"pyvene"}))


def _fit(
    spec: DASSpec,
    data: Sequence[Counterfactual],
    anatomy: Anatomy,
    tokenizer: Any,
    *,
    seed: int,
    work: Path | None,
) -> Fitted:
    return fit_das(spec, data, anatomy, tokenizer, seed=seed)


DAS = Recipe(_read, _given, _check, _reach, counterfactuals_sha256, _fit)
