"""Choosing the points of arms on validation questions, and measuring arms on the test's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from subvene.runner.data.truthfulqa.questions import Question
from subvene.runner.edits.not_finite import NotFiniteError
from subvene.runner.experiments.choose import best_of
from subvene.runner.experiments.comparison.arms import Arm
from subvene.runner.experiments.comparison.measures import (
    DivergenceMeasure,
    Measured,
    Progress,
    TruthfulQAMeasure,
    check_complete,
)
from subvene.runner.experiments.comparison.side_by_side import side_by_side
from subvene.runner.experiments.localization.making import Making, named
from subvene.runner.experiments.localization.plan import Candidate, Planned
from subvene.runner.experiments.localization.section import CurvePoint
from subvene.runner.experiments.results import Choice, Tried
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import LocalizationSpec, SubveneError

_CHOICES = "multiple choice"


@dataclass(frozen=True)
class Chosen:
    """An arm at the point that is tested.

    Attributes:
        planned: the arm.
        candidate: the point.
        choice: how it was chosen; None where there was but one.
        curve: what every point gave on validation questions; empty likewise.
    """

    planned: Planned
    candidate: Candidate
    choice: Choice | None = None
    curve: tuple[CurvePoint, ...] = ()


class Measuring:
    """Measures arms; multiple choice of several as rows of one batch.

    Args:
        asked: the evaluation.
        truthfulqa: the entry beside it.
        divergence: likewise; None without one.
        making: makes arms.
        original: the untouched model.
        tested: the test questions.
        validation: those that points are chosen on.
    """

    def __init__(
        self,
        asked: LocalizationSpec,
        truthfulqa: TruthfulQAMeasure,
        divergence: DivergenceMeasure | None,
        making: Making,
        original: IntervenedModel,
        tested: Sequence[Question],
        validation: Sequence[Question],
    ) -> None:
        self.asked, self.truthfulqa, self.divergence = asked, truthfulqa, divergence
        self.making, self.original = making, original
        self.tested, self.validation = tested, validation
        # What has been scored in this process, and told of by nobody.
        self._untold: set[str] = set()

    def choose(self, some: Sequence[Planned], unseen: frozenset[str]) -> list[Chosen]:
        """The point of each arm that is best on the validation questions.

        Args:
            some: arms.
            unseen: keys of the questions that ITI's directions do not see for that.
        """
        tried = {
            planned.name: [
                (candidate, replace(self.making.arm(planned, candidate, unseen), swept=True))
                for candidate in planned.candidates
            ]
            for planned in some
            if len(planned.candidates) > 1
        }
        metric = self.asked.selection.by
        if metric.startswith("mc"):
            rows = [(_on_validation(name, one), arm) for name, points in tried.items() for one, arm in points]
            self._score_together(rows, self.validation)
        return [
            self._chosen(planned, tried[planned.name])
            if planned.name in tried
            else Chosen(planned, planned.candidates[0])
            for planned in some
        ]

    def score(self, some: Sequence[tuple[str, Arm]]) -> None:
        """Do the multiple choice of arms on the test questions, for `measured` to find."""
        if "multiple_choice" in self.truthfulqa.spec.measure:
            self._score_together(some, self.tested)

    def measured(self, name: str, group: str, arm: Arm) -> list[Measured]:
        """What each measure gives of an arm on the test questions.

        Args:
            name: of the arm.
            group: of the arm, which says whether it answers questions.
            arm: the arm.
        """
        generates = self.asked.generate is None or group in ("baseline", *self.asked.generate)
        return self._measured(name, arm, only=None if generates else "mc2")

    def explored(self, chosen: Chosen, own: Sequence[Measured]) -> list[CurvePoint]:
        """What every point of an arm gives on the test questions, which chooses nothing.

        Args:
            chosen: the arm.
            own: what was measured of it at its own point.
        """
        planned, found = chosen.planned, []
        if planned.group not in self.asked.explore or len(planned.candidates) == 1:
            return []
        others = [one for one in planned.candidates if one is not chosen.candidate]
        rows = [(named(planned.name, one.point), self._swept(planned, one)) for one in others]
        self.score(rows)
        only = "mc2" if "multiple_choice" in self.truthfulqa.spec.measure else None
        given = {id(one): self._measured(*row, only=only) for one, row in zip(others, rows, strict=True)}
        for one in planned.candidates:
            metrics = {
                metric: value.mean
                for measured in given.get(id(one), own)
                for metric, value in measured.metrics.items()
            }
            found.append(_curve_point(planned, one, "test", metrics))
        return found

    def _swept(self, planned: Planned, candidate: Candidate) -> Arm:
        return replace(self.making.arm(planned, candidate), swept=True)

    def _measured(self, name: str, arm: Arm, *, only: str | None) -> list[Measured]:
        told, ledger = self._progress(name), self.making.ledger
        found = [self.truthfulqa.measure(arm, self.tested, ledger, told, only=only)]
        if self.divergence is not None:
            found.append(self.divergence.measure(arm, self.original, ledger, told))
        return found

    def _chosen(self, planned: Planned, points: Sequence[tuple[Candidate, Arm]]) -> Chosen:
        metric, tried, curve = self.asked.selection.by, [], []
        for candidate, arm in points:
            told = self._progress(_on_validation(planned.name, candidate))
            measured = self.truthfulqa.measure(arm, self.validation, self.making.ledger, told, only=metric)
            check_complete(measured, planned.name)
            tried.append(
                Tried(
                    point=candidate.point,
                    value=measured.value(metric),
                    n=len(self.validation),
                    not_finite=measured.not_finite,
                )
            )
            metrics = {name: value.mean for name, value in measured.metrics.items()}
            curve.append(_curve_point(planned, candidate, "validation", metrics))
        best = best_of(tried)
        if best is None:
            raise SubveneError(f"{planned.name}: no {metric} was measured to choose by")
        choice = Choice(condition=planned.name, metric=metric, tried=tuple(tried), chosen=best)
        candidate = next(candidate for candidate in planned.candidates if candidate.point == best)
        return Chosen(planned, candidate, choice, tuple(curve))

    def _score_together(self, some: Sequence[tuple[str, Arm]], questions: Sequence[Question]) -> None:
        """Do the units of multiple choice of arms, as many in one piece as `together` says.

        Which arms share a piece depends on their order alone, so that a run that is taken up again has the
        same pieces.
        """
        able = [(name, arm) for name, arm in some if arm.variant is not None and arm.fitted is not None]
        for begin in range(0, len(able), self.asked.together):
            piece = able[begin : begin + self.asked.together]
            if len(piece) == 1:
                continue
            arms = [arm for _, arm in piece]
            try:
                done = self.truthfulqa.choose_together(
                    arms,
                    questions,
                    self.making.ledger,
                    lambda missing: side_by_side(self.making.arms, missing),
                )
            except NotFiniteError:
                # It is not said whose; each scored by itself, the others have their numbers.
                continue
            self._untold |= {piece[i][0] for i in done}

    def _progress(self, name: str) -> Progress:
        def told(what: str, *, was_done: bool) -> None:
            if what == _CHOICES and name in self._untold:
                self._untold.remove(name)
                was_done = False
            self.making.told(f"{name}: {what}", was_done)

        return told


def _on_validation(name: str, candidate: Candidate) -> str:
    return f"{named(name, candidate.point)} on validation"


def _curve_point(
    planned: Planned, candidate: Candidate, questions: str, metrics: dict[str, float]
) -> CurvePoint:
    return CurvePoint.model_validate(
        {
            "arm": planned.name,
            "group": planned.group,
            "questions": questions,
            "point": candidate.point,
            "metrics": metrics,
        }
    )
