"""Running interchanges: the fit, every layer of its grid measured, and the artifact of what is declared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import torch
import transformers
from pydantic import JsonValue

from subvene.interventions import Sizes
from subvene.interventions.pyvene_inner import make_inner
from subvene.interventions.rotation import parametrized
from subvene.runner.artifacts.saes import Saes
from subvene.runner.data.counterfactuals import Counterfactual, CounterfactualError
from subvene.runner.experiments.comparison.arms import Arms, Fits
from subvene.runner.experiments.interchange.cells import cell_of, proportion
from subvene.runner.experiments.interchange.fits import GridFits
from subvene.runner.experiments.interchange.section import SECTION, Cell, Grid, InterchangeSection
from subvene.runner.experiments.results import Condition, FitRecord, Item, Metric, QuestionText, Results
from subvene.runner.experiments.study import Step
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import Ledger, digest
from subvene.runner.measures.interchange import CellMeasure, CellMeasured, Judged
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.identity import Manifest, run_manifest
from subvene.runner.passes.swaps import LayerSwaps
from subvene.runner.recipes import RECIPES
from subvene.runner.recipes.base import layers_of
from subvene.runner.recipes.das import Prepared, prepared
from subvene.runner.recipes.fitting import check_reach
from subvene.runner.training.passes import frozen
from subvene.runner.training.rotations import edit_of, options_of
from subvene.specs import DASSpec, ExperimentSpec, InterchangeSpec, PyveneSpec, dump_spec
from subvene.specs.recipes import BaseRecipe

# How a result is computed; whoever changes that changes this number, and old units are done again.
UNITS = 2
ARTIFACT = "artifact"
CONDITION = "swapped"


class Interchange:
    """The plan: which fits, and at which cells they are measured."""

    what: ClassVar[str] = "a run of interchanges"
    here: ClassVar[str | None] = "the layers of a grid share the passes of their bases and sources"

    def __init__(self, spec: ExperimentSpec, folder: Path, sizes: Sizes, step: Step) -> None:
        self.spec, self.folder, self.sizes, self.step = spec, folder, sizes, step
        self.declared = [one for one in spec.evaluate if isinstance(one, InterchangeSpec)]
        self.names = [
            f"interchange_{i}" if i > 1 else "interchange" for i in range(1, len(self.declared) + 1)
        ]
        self.data: dict[str, Any] = {
            recipe.keys[0]: RECIPES[recipe.recipe].read(recipe, folder)
            for recipe in spec.fits
            if recipe.made_from is None
        }
        self.measured = [_measured(spec, one) for one in self.declared]

    def manifest(self) -> Manifest:
        """What there is to know about where the numbers come from."""
        data = {
            f"fit_{recipe.keys[0]}": {"sha256": RECIPES[recipe.recipe].sha256(self.data[recipe.keys[0]])}
            for recipe in self._read()
        }
        return run_manifest(dump_spec(self.spec), self.folder, data=data, judges=[])

    def check(self) -> None:
        """Check layers and interventions against the model's sizes, and the data against the fits.

        Raises:
            SubveneError: naming what the model does not have, or why there is nothing to fit on.
        """
        check_reach(self.spec, self.sizes)
        for recipe in self._read():
            RECIPES[recipe.recipe].check(recipe, self.data[recipe.keys[0]], self.spec.seed)

    def units(self) -> int:
        """Layers of all grids."""
        return sum(len(layers_of(recipe.layers, self.sizes)) for recipe in self.measured)

    def run(
        self, model: transformers.PreTrainedModel, tokenizer: Any, ledger: Ledger, output: Path
    ) -> Results:
        """Fit, measure every layer that is not measured, and save what is declared."""
        saes = Saes.of([self.spec], self.folder)
        arms = Arms(model, tokenizer, ledger, output, self.folder, saes)
        grids: list[Grid] = []
        questions: dict[str, QuestionText] = {}
        with frozen(model):
            made: dict[str, Prepared] = {}
            for name, declared, recipe in zip(self.names, self.declared, self.measured, strict=True):
                rows: list[Counterfactual] = self.data[recipe.key]
                if recipe.key not in made:
                    made[recipe.key] = prepared(recipe, rows, Anatomy.of(model), tokenizer, self.spec.seed)
                fits = GridFits(recipe, rows, arms, self.spec.model.name, self.spec.seed)
                entry = _Entry(name, declared, fits, made[recipe.key], tokenizer)
                grids.append(entry.grid(ledger, self.step))
                questions |= {
                    row.key: QuestionText(question=f"{row.base} ← {row.source}", best=row.label)
                    for row in rows
                    if row.key in set(grids[-1].rows)
                }
        keys = [*self.spec.fitted_keys, *(recipe.key for recipe in self.measured)]
        fitted = arms.fitted_for(self.spec, keys, self.spec.seed, {})
        if fitted is None:
            raise TypeError("a run of interchanges has a fit")
        if self.spec.interventions:
            arms.compiled(self.spec, fitted).save_pretrained(output / ARTIFACT)
            self.step("saved", output)
        return self._results(grids, questions, fitted)

    def _read(self) -> list[BaseRecipe]:
        return [recipe for recipe in self.spec.fits if recipe.made_from is None]

    def _results(self, grids: Sequence[Grid], questions: Mapping[str, QuestionText], fits: Fits) -> Results:
        saved = _saved(self.spec, self.measured)
        section = InterchangeSection(grids=tuple(grids))
        return Results(
            kind=SECTION,
            conditions=tuple(one for grid in grids for one in _conditions(grid, saved)),
            fits=(FitRecord(condition=CONDITION, seed=self.spec.seed, provenance=fits.provenance),),
            questions=dict(questions),
            sections={SECTION: section.model_dump(mode="json")},
        )


class _LayerResult(TypedDict):
    """What a unit gives: the cells of a layer, as `CellMeasured` has them."""

    cells: list[JsonValue]


def _recorded(ledger: Ledger, identity: Mapping[str, Json]) -> _LayerResult:
    found = ledger.recorded(identity, _LayerResult)
    if found is None:
        raise KeyError(f"no unit of {identity} is recorded")
    return found


class _Entry:
    """One entry of `evaluate:` on a loaded model."""

    def __init__(
        self, name: str, declared: InterchangeSpec, fits: GridFits, made: Prepared, tokenizer: Any
    ) -> None:
        self.name, self.declared, self.fits, self.made = name, declared, fits, made
        self.recipe, self.seed, self.tokenizer = fits.recipe, fits.seed, tokenizer
        if declared.among == "answers" and len(made.answers) < 2:
            only = tokenizer.decode(made.answers.tolist())
            raise CounterfactualError(
                f"{name}: every answer in the data is {only!r}, the likeliest of them whatever is swapped; "
                "give rows with other answers, or set `among: vocabulary`"
            )

    @cached_property
    def judged(self) -> Judged:
        """By what rows are judged; the texts have run then."""
        made = self.made
        train, test = made.used(self.recipe)
        own, of_source = made.best
        return Judged(
            labels=made.labels,
            answers=made.answers if self.declared.among == "answers" else None,
            train=train,
            test=test,
            own=_said(own, [one.base_label for one in made.tokens]),
            of_source=_said(of_source, [one.source_label for one in made.tokens]),
        )

    def grid(self, ledger: Ledger, step: Step) -> Grid:
        """Every layer, trained and measured now or before."""
        layers = layers_of(self.recipe.layers, self.made.runs.anatomy.sizes)
        kept = {layer: self.fits.kept(layer) for layer in layers}
        units = {layer: self._unit(layer, one[1]) for layer, one in kept.items() if one is not None}
        missing = [layer for layer in layers if layer not in units or not ledger.has(units[layer])]
        for layer in layers:
            if layer not in missing:
                step("unit", {"what": f"{self.name}: layer {layer}", "was_done": True})
        self.made.runs.plan(missing)
        for swaps in self.made.runs.at(missing):
            fitted, digest_of_fit = self.fits.fitted(self.made, swaps)
            units[swaps.layer] = self._unit(swaps.layer, digest_of_fit)
            inners = {place: self._inner(fitted.tensors, swaps.layer, place) for place in swaps.swaps}
            ledger.do(units[swaps.layer], partial(self._layer, swaps, inners))
            step("unit", {"what": f"{self.name}: layer {swaps.layer}", "was_done": False})
        self.fits.join(layers)
        cells = [
            cell_of(CellMeasured.model_validate(one), self.declared.resamples, self.seed)
            for layer in layers
            for one in _recorded(ledger, units[layer])["cells"]
        ]
        return self._grid(layers, cells)

    def _unit(self, layer: int, fit: str) -> dict[str, Json]:
        said = [[one.base, one.source, one.label, dict(one.row.columns)] for one in self.made.tokens]
        return self.fits.arms.base | {
            "unit": "interchange",
            "interchange_units": UNITS,
            "tensors": fit,
            "recipe": self.recipe.model_dump(mode="json", exclude={"layers"} | self.recipe.immaterial),
            "evaluation": self.declared.model_dump(mode="json", exclude={"resamples", "key"}),
            "rows": digest(said),
            "seed": self.seed,
            "layer": layer,
        }

    def _layer(self, swaps: LayerSwaps, inners: Mapping[str, torch.nn.Module]) -> _LayerResult:
        measure = CellMeasure(
            self.judged,
            lambda inner: edit_of(self.recipe, inner),
            draws=self.declared.random,
            seed=self.seed,
            batch_size=self.recipe.batch_size,
        )
        cells = [measure.measured(swaps, place, inner) for place, inner in inners.items()]
        return {"cells": [cell.model_dump(mode="json") for cell in cells]}

    def _inner(self, tensors: Mapping[str, torch.Tensor], layer: int, place: str) -> torch.nn.Module:
        """A cell's intervention as it was trained."""
        recipe = self.recipe
        prefix = f"{recipe.cell_key(layer, place)}."
        state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        width = self.made.runs.anatomy.sizes.site_width(recipe.site)
        inner = make_inner(options_of(recipe, width), {})
        inner.load_state_dict(parametrized(inner, state), strict=False)
        return inner.to(self.judged.labels.device).requires_grad_(False)

    def _grid(self, layers: Sequence[int], cells: Sequence[Cell]) -> Grid:
        made, recipe, judged = self.made, self.recipe, self.judged
        said = made.runs.likeliest() if judged.answers is None else made.runs.said("base")
        untouched = (said == judged.labels)[judged.test.to(said.device)]
        sides = made.sides
        return Grid(
            name=self.name,
            key=recipe.key,
            class_name=recipe.class_name,
            rank=recipe.swapped if "low_rank_dimension" in recipe.declared or recipe.rank else None,
            site=recipe.site,
            layers=tuple(layers),
            places=tuple(recipe.positions),
            among=self.declared.among,
            answers=tuple(self.tokenizer.decode([one]) for one in made.answers.tolist()),
            rows=tuple(made.tokens[i].row.key for i in judged.test.tolist()),
            trained_on=len(judged.train),
            straddling=len(sides.straddling),
            not_known=len(sides.train) + len(sides.test) - len(judged.train) - len(judged.test),
            untouched=proportion(untouched.float().tolist()),
            cells=tuple(cells),
            note=made.runs.note,
        )


def _measured(spec: ExperimentSpec, declared: InterchangeSpec) -> DASSpec:
    """The fit that an entry measures."""
    return next(
        recipe for recipe in spec.fits if isinstance(recipe, DASSpec) and declared.key in (None, recipe.key)
    )


def _said(found: torch.Tensor, said: Sequence[int | None]) -> torch.Tensor:
    """Each row's own answer: what the data say, or else the model."""
    given = torch.tensor([-1 if one is None else one for one in said], device=found.device)
    return torch.where(given < 0, found, given)


def _saved(spec: ExperimentSpec, recipes: Sequence[DASSpec]) -> tuple[str, int, str] | None:
    """The fit, the layer and the place of the one cell that the artifact is; None where it is several."""
    cells = [
        (recipe.key, *cell)
        for declared in spec.interventions
        if isinstance(declared, PyveneSpec) and declared.state is not None
        for recipe in recipes
        if (cell := recipe.cell_of(declared.state.key)) is not None
    ]
    return cells[0] if len(cells) == 1 and len(spec.interventions) == 1 else None


def _conditions(grid: Grid, saved: tuple[str, int, str] | None) -> Iterator[Condition]:
    """Every place's best cell, and that of the artifact, arm by arm."""
    cells = {(cell.layer, cell.place): cell for cell in map(grid.best, grid.places)}
    if saved is not None and saved[0] == grid.key:
        cells.setdefault(saved[1:], grid.cell(*saved[1:]))
    for (layer, place), cell in cells.items():
        for arm, values in cell.measured.right.items():
            kept = arm == "das" and saved == (grid.key, layer, place)
            yield Condition(
                name=arm,
                label=f"{grid.name}: {place}, layer {layer}: {arm}",
                group=grid.name,
                metrics={"iia": Metric(mean=cell.iia[arm].mean, n=cell.iia[arm].n)},
                items=tuple(
                    Item(key=key, scores={"iia": value}) for key, value in zip(grid.rows, values, strict=True)
                ),
                artifact=ARTIFACT if kept else None,
            )
