"""Running a comparison: every condition, seed and fold, each unit done once, tables at the end."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import transformers
from pydantic import JsonValue

from subvene.interventions import Sizes
from subvene.runner.artifacts.saes import Saes
from subvene.runner.data.truthfulqa.questions import Question, about_data, load_questions
from subvene.runner.data.truthfulqa.splits import is_of_split
from subvene.runner.exchange.exports.checkpoint import check_bakeable
from subvene.runner.experiments.comparison.arms import Arm, Arms
from subvene.runner.experiments.comparison.budgets import BUDGETS, BudgetSearches
from subvene.runner.experiments.comparison.cells import Cell, held_out, in_words, without
from subvene.runner.experiments.comparison.choosing import Choosing
from subvene.runner.experiments.comparison.composing import CompositionMeasure
from subvene.runner.experiments.comparison.composition import SECTION
from subvene.runner.experiments.comparison.default_arms import completed
from subvene.runner.experiments.comparison.engine import Declared, engine_manifest, engine_of
from subvene.runner.experiments.comparison.keep import keep
from subvene.runner.experiments.comparison.measures import (
    MEASURES,
    ConditionMeasure,
    Measured,
    Place,
    Progress,
    Session,
    merged,
)
from subvene.runner.experiments.intervals import INTERVALS, intervals_of
from subvene.runner.experiments.item_effects import ITEM_EFFECTS, item_effects_of
from subvene.runner.experiments.reported import report_condition
from subvene.runner.experiments.results import (
    Condition,
    FitRecord,
    QuestionText,
    Results,
)
from subvene.runner.experiments.rows import rows
from subvene.runner.experiments.study import Step
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import Ledger, Waiting
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.identity import Manifest, run_manifest
from subvene.runner.recipes import RECIPES
from subvene.runner.recipes.fitting import check_reach
from subvene.specs import (
    ConditionEvaluation,
    ConditionSpec,
    ExperimentSpec,
    dump_spec,
    points,
    system_prompt,
    variant,
)
from subvene.specs.transfer_arms import declared_conditions
from subvene.specs.variants import chain

_Tested = tuple[Cell, Arm | None, list[Measured]]
"""A cell, its arm, and what each measure gave; no arm where there is none that meets a budget."""


class Comparison:
    """The plan: what is compared, on which questions, and with which measures."""

    what: ClassVar[str] = "a comparison of conditions"
    here: ClassVar[str | None] = None

    def __init__(self, spec: ExperimentSpec, folder: Path, sizes: Sizes, step: Step) -> None:
        spec, self.notes = completed(spec, folder, sizes)
        self.spec, self.folder, self.sizes, self.step = spec, folder, sizes, step
        self.composition = CompositionMeasure.of(spec)
        composed = () if self.composition is None or spec.conditions else self.composition.planned.conditions
        self.conditions = composed or declared_conditions(spec)
        self.n_folds = spec.folds or 1
        self.measures: list[tuple[ConditionEvaluation, ConditionMeasure[Any]]] = [
            (declared, MEASURES[declared.kind](declared, folder))
            for declared in spec.evaluate
            if isinstance(declared, ConditionEvaluation) and declared.kind in MEASURES
        ]
        self.fit_questions: dict[str, list[Question]] = {
            recipe.keys[0]: load_questions(recipe.learns_from, folder)
            for recipe in spec.fits
            if recipe.learns_from is not None
        }
        self.choosing = Choosing(spec, self.measures, self._arm, self._held_out, self._place, self._told)

    def manifest(self) -> Manifest:
        """What there is to know about where the numbers come from."""
        one = len(self.spec.fits) == 1
        data: dict[str, Json] = {
            "fit" if one else f"fit_{key}": about_data(questions)
            for key, questions in self.fit_questions.items()
        }
        of_kind: Counter[str] = Counter()
        for declared, measure in self.measures:
            data[f"{declared.kind}_{of_kind[declared.kind]}"] = measure.data()
            of_kind[declared.kind] += 1
        judges = [about for _, measure in self.measures for about in measure.judge_identities()]
        manifest = run_manifest(dump_spec(self.spec), self.folder, data=data, judges=judges)
        if self.spec.engine is not None:
            manifest["engine"] = engine_manifest(self.spec.engine)
        return manifest

    def check(self) -> None:
        """Check every point of every condition against the model's sizes, and the data against the fits.

        Raises:
            SubveneError: naming what the model does not have, or why there is nothing to fit on.
        """
        for condition, declared in self._variants():
            check_reach(declared, self.sizes)
            self.saes.resolved(declared)
            for seed, fold in self.cells(condition):
                tuning = self.tuning(fold)
                for recipe in declared.fits_for(declared.fitted_keys):
                    if recipe.keys[0] in tuning:
                        RECIPES[recipe.recipe].check(recipe, tuning[recipe.keys[0]], seed)

    def _variants(self) -> Iterator[tuple[ConditionSpec, ExperimentSpec]]:
        """Every point of every condition, without what others choose for it; not the untouched model."""
        for condition in self.conditions:
            for point in points(condition):
                if (declared := variant(self.spec, condition, point)) is not None:
                    yield condition, declared

    @cached_property
    def saes(self) -> Saes:
        """The SAEs that any condition names."""
        return Saes.of((declared for _, declared in self._variants()), self.folder)

    def tuning(self, fold: int) -> dict[str, list[Question]]:
        """By the key of each fit that learns from questions, those that it may see in a fold."""
        if self.spec.folds is None:
            return self.fit_questions
        return {
            key: [q for q in questions if not is_of_split(q, fold, self.n_folds)]
            for key, questions in self.fit_questions.items()
        }

    def cells(self, condition: ConditionSpec) -> Iterator[tuple[int, int]]:
        """The seeds and folds of one condition."""
        for seed in condition.seeds or self.spec.all_seeds:
            for fold in range(self.n_folds * (self.spec.repeats or 1)):
                yield seed, fold

    def units(self) -> int:
        """Measurements to come, those of earlier runs among them."""
        total = 0
        for condition in self.conditions:
            n_points, choose = len(points(condition)), condition.choose
            for seed, _ in self.cells(condition):
                each = sum(measure.steps() for _, measure in self._measures(seed))
                if choose is None:
                    total += n_points * each
                    continue
                by = 0 if choose.by is None else self.choosing.chooser(choose.by).steps(only=choose.by)
                # How many strengths a search tries is known when it ends; this is what is usual.
                searched = 0 if choose.budget is None else min(choose.budget.evaluations, 7)
                total += n_points * (by + searched) + each
        return total

    def _measures(self, seed: int) -> Iterator[tuple[ConditionEvaluation, ConditionMeasure[Any]]]:
        for declared, measure in self.measures:
            if seed in (declared.seeds or (seed,)):
                yield declared, measure

    def run(
        self, model: transformers.PreTrainedModel, tokenizer: Any, ledger: Ledger, output: Path
    ) -> Results:
        """Do every unit that is not done, and put the results together."""
        arms = Arms(model, tokenizer, ledger, output, self.folder, self.saes)
        with engine_of(self.spec, self._declared(), arms, self.folder) as engine:
            session = Session(
                arms,
                IntervenedModel.plain(arms.model, arms.tokenizer),
                ledger,
                lambda keys, seed, fold: arms.fitted_for(self.spec, keys, seed, self.tuning(fold)),
                engine,
            )
            baking = partial(self._check_baking, arms)
            places = [partial(self._tested, *place, session) for place in self._places()]
            _, *tested = ledger.each([baking, *places])
        cells: list[Condition] = []
        fits: list[FitRecord] = []
        for cell, arm, measured in itertools.chain.from_iterable(tested):
            kept = None if arm is None else keep(cell, arm, arms, output, fits)
            cells.append(self._record(cell, arm, measured, kept))
            if self.composition is not None and arm is not None:
                self.composition.look(cell.condition.name, arm, arms)
        sections: dict[str, JsonValue] = {
            INTERVALS: intervals_of(cells, self.n_folds).model_dump(mode="json"),
            ITEM_EFFECTS: item_effects_of(cells).model_dump(mode="json"),
        }
        if self.choosing.searches:
            sections[BUDGETS] = BudgetSearches(searches=tuple(self.choosing.searches)).model_dump(mode="json")
        if self.composition is not None:
            sections[SECTION] = self.composition.section(rows(cells), cells).model_dump(mode="json")
        for _, measure in self.measures:
            sections |= measure.sections(cells, session)
        asked: dict[str, QuestionText] = {}
        for _, measure in self.measures:
            asked |= measure.questions_asked()
        return Results(
            kind="comparison",
            conditions=tuple(cells),
            choices=tuple(self.choosing.choices),
            fits=tuple(fits),
            judges=tuple(judge for _, measure in self.measures for judge in measure.judged_by()),
            questions=asked,
            notes=self.notes,
            sections=sections,
        )

    def _declared(self) -> Iterator[Declared]:
        """What every condition declares at each of its points, for every seed and fold that fits."""
        for condition in self.conditions:
            for point in points(condition):
                # Strengths that are still to be chosen do not matter: requests say them.
                if (declared := variant(self.spec, condition, point, {})) is None:
                    continue
                for seed, fold in self.cells(condition):
                    yield declared, seed, self.tuning(fold)
                    if not declared.fits:
                        break

    def _places(self) -> Iterator[tuple[ConditionSpec, int, int]]:
        """Every condition with its seeds and folds."""
        for condition in self.conditions:
            for seed, fold in self.cells(condition):
                yield condition, seed, fold

    def _tested(self, condition: ConditionSpec, seed: int, fold: int, session: Session) -> list[_Tested]:
        """What the points of a condition that are tested gave."""
        grid = [Cell(condition, seed, fold, point) for point in points(condition)]
        cells = [Cell(condition, seed, fold, point) for point in self.choosing.points(grid, session)]
        if not cells:
            why = self.choosing.out_of_reach[condition.name, seed, fold]
            return [(grid[0], None, [Measured(out_of_reach=why)])]
        return session.ledger.each(partial(self._of_cell, cell, session) for cell in cells)

    def _of_cell(self, cell: Cell, session: Session) -> _Tested:
        transformers.set_seed(cell.seed)
        arm = self._arm(cell, session)
        with arm.held() as held:
            measured = self._measured(cell, held, session)
        report_condition(self._record(cell, arm, measured, None), session.ledger)
        return cell, arm, measured

    def _check_baking(self, arms: Arms) -> list[_Tested]:
        """Find out before anything is measured whether this architecture can carry what is to be baked."""
        for condition in self.conditions:
            if not condition.bake:
                continue
            seed, fold = next(self.cells(condition))
            # Strengths that are still to be chosen do not matter: any point of the sweep will do.
            declared = variant(self.spec, condition, points(condition)[0], {})
            arm = arms.make(declared, seed, self.tuning(fold), bake=False)
            if arm.variant is not None:
                check_bakeable(arms.compiled(arm.variant, arm.fitted))
        return []

    def _place(self, cell: Cell) -> Place:
        return Place(cell.seed, cell.fold, self.n_folds)

    def _variant(self, cell: Cell) -> ExperimentSpec | None:
        inherited = self.choosing.inherited(cell.seed, cell.fold)
        for link in chain(self.spec, cell.condition)[:-1]:
            if link.choose is not None and link.name not in inherited:
                raise Waiting(f"condition {cell.condition.name}: no point of {link.name} is chosen yet")
        return variant(self.spec, cell.condition, cell.point, inherited)

    def _arm(self, cell: Cell, session: Session, unseen: frozenset[str] = frozenset()) -> Arm:
        declared, tuning = self._variant(cell), self.tuning(cell.fold)
        if declared is not None:
            tuning = without(tuning, declared.fits, unseen)
        arm = session.arms.make(
            declared,
            cell.seed,
            tuning,
            bake=cell.condition.bake,
            system=system_prompt(self.spec, cell.condition),
        )
        # A point that was chosen is no longer one of several.
        key = (cell.condition.name, cell.seed, cell.fold)
        identity = arm.identity | ({} if session.engine is None else session.engine.identity)
        choose = cell.condition.choose
        several = len(points(cell.condition)) > 1 or (choose is not None and choose.budget is not None)
        return replace(arm, identity=identity, swept=several and key not in self.choosing.chosen)

    def _measured(self, cell: Cell, arm: Arm, session: Session) -> list[Measured]:
        name = " ".join(filter(None, (cell.condition.name, in_words(cell.point))))
        place, told = self._place(cell), self._told(name, cell)
        return session.ledger.each(
            partial(measure.run, arm, measure.tested(place), session, told, place)
            for _, measure in self._measures(cell.seed)
        )

    def _seen(self, cell: Cell, arm: Arm | None) -> dict[str, list[Question]]:
        """By key of each fit of an arm that learns from questions, those that it may have seen."""
        if arm is None or arm.variant is None:
            return {}
        tuning = self.tuning(cell.fold)
        keys = (recipe.keys[0] for recipe in arm.variant.fits_for(arm.variant.fitted_keys))
        return {key: tuning[key] for key in keys if key in tuning}

    def _held_out(self, cell: Cell) -> list[Mapping[str, Question]]:
        """Of each fit of a cell that learns from questions, those that it holds out."""
        declared, tuning = self._variant(cell), self.tuning(cell.fold)
        if declared is None:
            return []
        return [
            held_out(recipe, tuning[recipe.keys[0]], cell.seed)
            for recipe in declared.fits_for(declared.fitted_keys)
            if recipe.keys[0] in tuning
        ]

    def _told(self, name: str, cell: Cell) -> Progress:
        def told(what: str, *, was_done: bool) -> None:
            about = {"condition": name, "seed": cell.seed, "fold": cell.fold, "what": what}
            self.step("unit", about | {"was_done": was_done})

        return told

    def _record(
        self, cell: Cell, arm: Arm | None, measured: Sequence[Measured], kept: str | None
    ) -> Condition:
        seen = {q.key for questions in self._seen(cell, arm).values() for q in questions}
        tested = {key for found in measured for key in found.questions}
        shown = "" if cell.condition.choose is not None else in_words(cell.point)
        return merged(
            cell.condition.name,
            f"{cell.condition.name} {shown}".strip(),
            measured,
            point=cell.point,
            seed=cell.seed,
            fold=cell.fold,
            counts={"questions": len(tested), "questions_seen_in_fit": len(tested & seen)},
            artifact=kept,
        )
