"""Choosing for comparisons: the strength that keeps to a budget, then the best point on validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from subvene.runner.data.truthfulqa.questions import Question
from subvene.runner.experiments.choose import best_of, no_choice
from subvene.runner.experiments.comparison.arms import Arm
from subvene.runner.experiments.comparison.budgets import BudgetSearch
from subvene.runner.experiments.comparison.cells import Cell, in_words
from subvene.runner.experiments.comparison.measures import (
    ConditionMeasure,
    DivergenceMeasure,
    Place,
    Progress,
    Session,
    check_complete,
)
from subvene.runner.experiments.comparison.strength_search import rises, search
from subvene.runner.experiments.results import Choice, Point, Tried
from subvene.specs import ChooseSpec, ConditionEvaluation, ExperimentSpec, SubveneError
from subvene.specs.conditions import BudgetSpec
from subvene.specs.variants import chain, strengths

Key = tuple[str, int, int]
"""A condition's name, the seed and the fold."""


class ArmOf(Protocol):
    """Makes the arm of a cell."""

    def __call__(self, cell: Cell, session: Session, unseen: frozenset[str] = frozenset()) -> Arm:
        """The arm; its fits have not seen the questions `unseen`."""


@dataclass
class Choosing:
    """What of a comparison is chosen, for each seed and fold.

    Attributes:
        spec: the experiment.
        measures: its evaluations.
        arm: makes the arm of a cell.
        held_out: of each fit of a cell that learns from questions, those that it holds out.
        place: of a cell.
        told: is told of the units of a cell, whose name it is given.
        chosen: the point of a condition.
        out_of_reach: why a condition meets no budget.
        choices: how points were chosen.
        searches: how strengths were found.
    """

    spec: ExperimentSpec
    measures: Sequence[tuple[ConditionEvaluation, ConditionMeasure[Any]]]
    arm: ArmOf
    held_out: Callable[[Cell], list[Mapping[str, Question]]]
    place: Callable[[Cell], Place]
    told: Callable[[str, Cell], Progress]
    chosen: dict[Key, Point] = field(default_factory=dict)
    out_of_reach: dict[Key, str] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    searches: list[BudgetSearch] = field(default_factory=list)

    def chooser(self, metric: str) -> ConditionMeasure[Any]:
        """The measure that gives a metric to choose by."""
        return next(measure for declared, measure in self.measures if metric in declared.choosing)

    def inherited(self, seed: int, fold: int) -> dict[str, Point]:
        """By name of a condition, the point that was chosen for it."""
        return {name: point for (name, *place), point in self.chosen.items() if place == [seed, fold]}

    def points(self, cells: Sequence[Cell], session: Session) -> list[Point]:
        """The points to be tested: all of the sweep, or the one that is best on the validation items.

        Args:
            cells: a condition for one seed and fold, at each point of its sweep.
            session: model and ledger.

        Returns:
            None of them where the condition, or one that it starts from, meets no budget.
        """
        first = cells[0]
        condition, choose = first.condition, first.condition.choose
        key = (condition.name, first.seed, first.fold)
        links = chain(self.spec, condition)[:-1]
        if before := [name for link in links if (name := (link.name, *key[1:])) in self.out_of_reach]:
            self.out_of_reach[key] = f"it starts from {before[-1][0]}: {self.out_of_reach[before[-1]]}"
            return []
        if choose is None:
            return [cell.point for cell in cells]
        tried: list[Tried] = []
        if choose.budget is not None:
            found = session.ledger.each(
                partial(self._at_budget, cell, choose.budget, session) for cell in cells
            )
            tried = [
                Tried(point=cell.point, out_of_reach=why)
                for cell, why in zip(cells, found, strict=True)
                if isinstance(why, str)
            ]
            cells = [
                Cell(condition, first.seed, first.fold, one) for one in found if not isinstance(one, str)
            ]
            if not cells:
                self.out_of_reach[key] = "; ".join(
                    dict.fromkeys(one for one in found if isinstance(one, str))
                )
                return []
        best = cells[0].point if choose.by is None else self._best(cells, choose, choose.by, tried, session)
        self.chosen[key] = best
        return [best]

    def _at_budget(self, cell: Cell, budget: BudgetSpec, session: Session) -> Point | str:
        """The point with the strengths that keep to the budget; why there are none, in words."""
        declared = strengths(self.spec, cell.condition, cell.point, self.inherited(cell.seed, cell.fold))
        numbers = {path: float(value) for path, value in declared.items() if not isinstance(value, tuple)}
        measure = next(one for _, one in self.measures if isinstance(one, DivergenceMeasure))
        texts = measure.validation(self.place(cell), ())

        def at(multiple: float) -> Point:
            return {**cell.point, **{path: _digits(multiple * value) for path, value in numbers.items()}}

        def kl_at(multiple: float) -> float | None:
            point = at(multiple)
            told = self.told(f"{cell.condition.name} {in_words(point)} for its budget", cell)
            arm = self.arm(Cell(cell.condition, cell.seed, cell.fold, point), session)
            return measure.measure(arm, session.original, session.ledger, told, texts).value("kl")

        found = search(kl_at, budget)
        point = None if found.multiple is None else at(found.multiple)
        self.searches.append(
            BudgetSearch(
                condition=cell.condition.name,
                seed=cell.seed,
                fold=cell.fold,
                point=cell.point,
                strengths={path: value for path, value in numbers.items()},
                kl=budget.kl,
                within=budget.within,
                texts=len(texts),
                tried=found.tried,
                rises=rises(found.tried),
                multiple=found.multiple,
                chosen=point,
                why=found.why,
            )
        )
        return str(found.why) if point is None else point

    def _best(
        self, cells: Sequence[Cell], choose: ChooseSpec, by: str, missed: Sequence[Tried], session: Session
    ) -> Point:
        """The point that is best on validation items."""
        first = cells[0]
        measure = self.chooser(by)
        # A point may hold out other questions than the next; those are asked that no fit of them has seen.
        validation = measure.validation(
            self.place(first), [held for cell in cells for held in self.held_out(cell)]
        )
        if not validation:
            raise SubveneError(
                f"condition {first.condition.name}: `choose` needs a fit that learns from questions, and "
                "questions that all points of the sweep hold out (`fit.validation`, `fit.seed`, "
                "`fit.data.limit`), or `validation` in the evaluation that gives the metric"
            )
        # Directions see all that an ITI fit is given: here the others, and once it is chosen all.
        unseen = frozenset(item.key for item in validation if isinstance(item, Question))
        tried = session.ledger.each(
            partial(self._tried, cell, choose, by, validation, session, unseen) for cell in cells
        )
        tried += [one.model_copy(update={"n": len(validation)}) for one in missed]
        best = best_of(tried)
        if best is None:
            raise no_choice(first.condition.name, choose, tried)
        self.choices.append(
            Choice(
                condition=first.condition.name,
                metric=by,
                tried=tuple(tried),
                chosen=best,
                seed=first.seed,
                fold=first.fold,
            )
        )
        return best

    def _tried(
        self,
        cell: Cell,
        choose: ChooseSpec,
        by: str,
        validation: Sequence[Any],
        session: Session,
        unseen: frozenset[str],
    ) -> Tried:
        """What one point of a sweep gives on the validation items, whose questions `unseen` names."""
        what = f"condition {cell.condition.name}"
        words = f"{cell.condition.name} {in_words(cell.point)} on validation"
        measured = self.chooser(by).run(
            self.arm(cell, session, unseen),
            validation,
            session,
            self.told(words, cell),
            self.place(cell),
            only=by,
        )
        check_complete(measured, what)
        value = measured.value(by)
        if value is None and measured.not_finite is None:
            raise SubveneError(f"{what}: the judge gave no {by} to choose by")
        low = [name for name, least in choose.at_least.items() if (measured.value(name) or 0.0) < least]
        n, not_finite = len(validation), measured.not_finite
        # A point that may not be taken keeps its place among what was tried, without a value to win by.
        return Tried(point=cell.point, value=None if low else value, n=n, not_finite=not_finite)


def _digits(strength: float) -> float:
    """Six digits: what tables show is what was run."""
    return float(f"{strength:.6g}")
