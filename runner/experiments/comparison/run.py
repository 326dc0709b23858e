"""Running a comparison: every condition, seed and fold, each unit done once, tables at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import transformers

from subvene.interventions import Sizes
from subvene.runner.data.truthfulqa.questions import Question, about_data, load_questions
from subvene.runner.data.truthfulqa.splits import fold_of, limited, validation_keys
from subvene.runner.edits.not_finite import NotFiniteError
from subvene.runner.exchange.exports.checkpoint import check_bakeable
from subvene.runner.experiments.choose import best_of
from subvene.runner.experiments.comparison.arms import Arm, Arms
from subvene.runner.experiments.comparison.composing import CompositionMeasure
from subvene.runner.experiments.comparison.composition import SECTION
from subvene.runner.experiments.comparison.measures import (
    DivergenceMeasure,
    Measured,
    Progress,
    TruthfulQAMeasure,
    check_complete,
    merged,
)
from subvene.runner.experiments.results import (
    Choice,
    Condition,
    FitRecord,
    QuestionText,
    Results,
    Tried,
    judge_record,
)
from subvene.runner.experiments.rows import rows
from subvene.runner.experiments.study import Step
from subvene.runner.files.ledger import Ledger
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.judges import BOTH
from subvene.runner.models.identity import run_manifest
from subvene.runner.recipes import RECIPES
from subvene.runner.recipes.fitting import check_reach
from subvene.runner.recipes.localized_edit import held_out_keys
from subvene.specs import (
    ConditionSpec,
    DivergenceSpec,
    ExperimentSpec,
    ITISpec,
    LocalizedEditSpec,
    SubveneError,
    TruthfulQASpec,
    dump_spec,
    points,
    variant,
)

_DEFAULT_CONDITIONS = (
    ConditionSpec(name="baseline", interventions=()),
    ConditionSpec(name="intervened"),
)


@dataclass(frozen=True)
class _Cell:
    """One condition at one point of its sweep, for one seed and fold."""

    condition: ConditionSpec
    seed: int
    fold: int
    point: dict[str, Any]


class Comparison:
    """The plan: what is compared, on which questions, and with which measures."""

    what: ClassVar[str] = "a comparison of conditions"

    def __init__(self, spec: ExperimentSpec, folder: Path, sizes: Sizes, step: Step) -> None:
        self.spec, self.folder, self.sizes, self.step = spec, folder, sizes, step
        self.composition = CompositionMeasure.of(spec)
        composed = () if self.composition is None else self.composition.planned.conditions
        self.conditions = spec.conditions or composed or _DEFAULT_CONDITIONS
        self.n_folds = spec.folds or 1
        self.questions: list[tuple[TruthfulQASpec, TruthfulQAMeasure]] = []
        self.divergences: list[tuple[DivergenceSpec, DivergenceMeasure]] = []
        for declared in spec.evaluate:
            if isinstance(declared, TruthfulQASpec):
                self.questions.append((declared, TruthfulQAMeasure(declared, folder)))
            elif isinstance(declared, DivergenceSpec):
                self.divergences.append((declared, DivergenceMeasure(declared, folder)))
        recipe = spec.fit
        source = None if recipe is None else recipe.learns_from
        self.fit_questions = None if source is None else load_questions(source, folder)
        self.chosen: dict[tuple[str, int, int], dict[str, Any]] = {}
        self.choices: list[Choice] = []

    def manifest(self) -> dict[str, Any]:
        """What there is to know about where the numbers come from."""
        data = {}
        if self.fit_questions is not None:
            data["fit"] = about_data(self.fit_questions)
        for i, (_, measure) in enumerate(self.questions):
            data[f"truthfulqa_{i}"] = about_data(measure.questions) | {
                "prompts_sha256": measure.prompts_sha256
            }
        judges = [measure.judge.describe(BOTH) for _, measure in self.questions if measure.judge is not None]
        return run_manifest(dump_spec(self.spec), self.folder, data=data, judges=judges)

    def check(self) -> None:
        """Check every point of every condition against the model's sizes, and the data against the fits.

        Raises:
            SubveneError: naming what the model does not have, or why there is nothing to fit on.
        """
        for condition in self.conditions:
            for point in points(condition):
                declared = variant(self.spec, condition, point)
                if declared is None:
                    continue
                check_reach(declared, self.sizes)
                for seed, fold in self.cells(condition):
                    tuning = self.tuning(fold)
                    if declared.fit is not None and tuning is not None:
                        RECIPES[declared.fit.recipe].check(declared.fit, tuning, seed)

    def tuning(self, fold: int) -> list[Question] | None:
        """The questions that the fit of a fold may see; None where it learns from none."""
        if self.fit_questions is None or self.spec.folds is None:
            return self.fit_questions
        return [q for q in self.fit_questions if fold_of(q, self.n_folds) != fold]

    def tested(self, measure: TruthfulQAMeasure, fold: int) -> list[Question]:
        """The questions of a measure that a fold is tested on."""
        chosen = measure.questions
        if self.spec.folds is not None:
            chosen = [q for q in chosen if fold_of(q, self.n_folds) == fold]
        return limited(chosen, measure.spec.limit)

    def cells(self, condition: ConditionSpec) -> Iterator[tuple[int, int]]:
        """The seeds and folds of one condition."""
        for seed in condition.seeds or self.spec.all_seeds:
            for fold in range(self.n_folds):
                yield seed, fold

    def units(self) -> int:
        """Measurements to come, those of earlier runs among them."""
        total = 0
        for condition in self.conditions:
            for seed, _ in self.cells(condition):
                each = sum(m.steps() for spec, m in self.questions if seed in (spec.seeds or (seed,)))
                each += sum(m.steps() for spec, m in self.divergences if seed in (spec.seeds or (seed,)))
                n_points = len(points(condition))
                if condition.choose is not None:
                    total += n_points * self.questions[0][1].steps(only=condition.choose.by) + each
                else:
                    total += n_points * each
        return total

    def run(
        self, model: transformers.PreTrainedModel, tokenizer: Any, ledger: Ledger, output: Path
    ) -> Results:
        """Do every unit that is not done, and put the results together."""
        arms, step = Arms(model, tokenizer, ledger, output, self.folder), self.step
        self._check_baking(arms)
        original = IntervenedModel.plain(arms.model, arms.tokenizer)
        cells: list[Condition] = []
        fits: list[FitRecord] = []
        for condition in self.conditions:
            for seed, fold in self.cells(condition):
                for point in self._points(condition, seed, fold, arms, ledger, step):
                    cell = _Cell(condition, seed, fold, point)
                    transformers.set_seed(seed)
                    arm = self._arm(cell, arms)
                    measured = self._measured(cell, arm, original, ledger, step)
                    kept = self._keep(cell, arm, arms, output, fits)
                    cells.append(self._record(cell, arm, measured, kept))
                    if self.composition is not None:
                        self.composition.look(condition.name, arm, arms)
        composed: dict[str, Any] = {}
        if self.composition is not None:
            composed[SECTION] = self.composition.section(rows(cells), cells).model_dump(mode="json")
        judges = [measure.judge for _, measure in self.questions if measure.judge is not None]
        return Results(
            kind="comparison",
            conditions=tuple(cells),
            choices=tuple(self.choices),
            fits=tuple(fits),
            judges=tuple(judge_record(judge.describe(BOTH), judge.usage()) for judge in judges),
            questions={
                q.key: QuestionText(question=q.question, best=q.best, category=q.category)
                for _, measure in self.questions
                for q in measure.questions
            },
            sections=composed,
        )

    def _check_baking(self, arms: Arms) -> None:
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

    def _points(
        self,
        condition: ConditionSpec,
        seed: int,
        fold: int,
        arms: Arms,
        ledger: Ledger,
        step: Callable[[str, Any], None],
    ) -> list[dict[str, Any]]:
        """The points to be tested: all of the sweep, or the one that is best on the validation questions."""
        grid = points(condition)
        if condition.choose is None:
            return grid
        metric, (_, measure) = condition.choose.by, self.questions[0]
        tuning = self.tuning(fold) or []
        cells = [_Cell(condition, seed, fold, point) for point in grid]
        # A point may hold out other questions than the next; those are asked that no fit of them has seen.
        held = [_held_out(declared, tuning, seed) for cell in cells if (declared := self._variant(cell))]
        validation = [q for q in tuning if all(q.key in keys for keys in held)]
        if not validation:
            raise SubveneError(
                f"condition {condition.name}: `choose` needs a fit that learns from questions, and questions "
                "that all points of the sweep hold out (`fit.validation`, `fit.seed`, `fit.data.limit`)"
            )
        tried: list[Tried] = []
        for cell in cells:
            point, arm = cell.point, self._arm(cell, arms)
            told = _told(step, f"{condition.name} {_in_words(point)} on validation", seed, fold)
            measured = measure.measure(arm, validation, ledger, told, only=metric)
            check_complete(measured, f"condition {condition.name}")
            value = measured.value(metric)
            if value is None and measured.not_finite is None:
                raise SubveneError(f"condition {condition.name}: the judge gave no {metric} to choose by")
            tried.append(Tried(point=point, value=value, n=len(validation), not_finite=measured.not_finite))
        best = best_of(tried)
        if best is None:
            raise NotFiniteError(
                f"condition {condition.name}: no point of its sweep stays finite on the validation "
                f"questions; {tried[-1].not_finite}"
            )
        self.chosen[condition.name, seed, fold] = best
        self.choices.append(
            Choice(
                condition=condition.name,
                metric=metric,
                tried=tuple(tried),
                chosen=best,
                seed=seed,
                fold=fold,
            )
        )
        return [best]

    def _variant(self, cell: _Cell) -> ExperimentSpec | None:
        inherited = {
            name: point
            for (name, seed, fold), point in self.chosen.items()
            if (seed, fold) == (cell.seed, cell.fold)
        }
        return variant(self.spec, cell.condition, cell.point, inherited)

    def _arm(self, cell: _Cell, arms: Arms) -> Arm:
        declared = self._variant(cell)
        arm = arms.make(declared, cell.seed, self.tuning(cell.fold), bake=cell.condition.bake)
        # A point that was chosen is no longer one of several.
        key = (cell.condition.name, cell.seed, cell.fold)
        return replace(arm, swept=len(points(cell.condition)) > 1 and key not in self.chosen)

    def _measured(
        self,
        cell: _Cell,
        arm: Arm,
        original: IntervenedModel,
        ledger: Ledger,
        step: Callable[[str, Any], None],
    ) -> list[Measured]:
        name = " ".join(filter(None, (cell.condition.name, _in_words(cell.point))))
        told = _told(step, name, cell.seed, cell.fold)
        found = []
        for spec, questions in self.questions:
            if cell.seed in (spec.seeds or (cell.seed,)):
                tested = self.tested(questions, cell.fold)
                found.append(questions.measure(arm, tested, ledger, told))
        for declared, texts in self.divergences:
            if cell.seed in (declared.seeds or (cell.seed,)):
                found.append(texts.measure(arm, original, ledger, told))
        return found

    def _record(self, cell: _Cell, arm: Arm, measured: Sequence[Measured], kept: str | None) -> Condition:
        tuning = self.tuning(cell.fold)
        seen = {q.key for q in tuning} if tuning and arm.fitted is not None else set()
        tested = {key for found in measured for key in found.questions}
        shown = "" if cell.condition.choose is not None else _in_words(cell.point)
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

    def _keep(self, cell: _Cell, arm: Arm, arms: Arms, output: Path, fits: list[FitRecord]) -> str | None:
        """Save the arm as an artifact that can be loaded and shared, and keep what its fit found."""
        if arm.variant is None or arm.bake:
            return None
        parts = (cell.condition.name, _file_name(cell.point), f"seed{cell.seed}", f"fold{cell.fold}")
        kept = f"artifacts/{'-'.join(filter(None, parts))}"
        arms.compiled(arm.variant, arm.fitted).save_pretrained(output / kept)
        if arm.fitted is not None:
            fits.append(
                FitRecord(
                    condition=cell.condition.name,
                    point=cell.point,
                    seed=cell.seed,
                    fold=cell.fold,
                    artifact=kept,
                    provenance=arm.fitted["provenance"],
                )
            )
        return kept


def _held_out(declared: ExperimentSpec, tuning: Sequence[Question], seed: int) -> frozenset[str]:
    """Keys of the questions that the fit of a variant holds out for validation."""
    recipe = declared.fit
    if isinstance(recipe, ITISpec):
        return validation_keys(tuning, recipe.validation, seed)
    if not isinstance(recipe, LocalizedEditSpec):
        return frozenset()
    return held_out_keys(recipe, tuning, seed)


def _told(step: Callable[[str, Any], None], name: str, seed: int, fold: int) -> Progress:
    def told(what: str, *, was_done: bool) -> None:
        step("unit", {"condition": name, "seed": seed, "fold": fold, "what": what, "was_done": was_done})

    return told


def _in_words(point: Mapping[str, Any]) -> str:
    """`strength=5, k=16`: the last part of each path, with its value."""
    return ", ".join(f"{path.rpartition('.')[2]}={value}" for path, value in point.items())


def _file_name(point: Mapping[str, Any]) -> str:
    words = _in_words(point).replace(", ", "-").replace("=", "")
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in words)
