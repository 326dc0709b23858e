"""What measures have in common that ask each trait's evaluation questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from subvene.runner.data.traits import Trait, check_evaluation, read_trait
from subvene.runner.data.truthfulqa.questions import Question as TruthfulQuestion
from subvene.runner.experiments.comparison.measures.base import ConditionMeasure, Place
from subvene.specs import LikelihoodSpec, SubveneError, TraitScoresSpec

Question = tuple[Trait, str]
"""A trait, and one of its evaluation questions."""


class TraitsMeasure(ConditionMeasure[Question]):
    """Traits, and which of their questions are for choosing and which are tested.

    Args:
        declared: the evaluation.
        folder: where relative files are looked for.

    Raises:
        SubveneError: a trait has no question to test on.
    """

    def __init__(self, declared: TraitScoresSpec | LikelihoodSpec, folder: Path) -> None:
        self.traits = tuple(read_trait(trait, folder) for trait in declared.traits)
        self._reserved, self._limit = declared.validation or 0, declared.questions
        for trait in self.traits:
            check_evaluation(trait)
            if self._reserved >= len(trait.evaluation):
                raise SubveneError(
                    f"evaluate {declared.kind}: validation takes {self._reserved} of the "
                    f"{len(trait.evaluation)} evaluation questions of {trait.name} and leaves none to test "
                    "on; lower it"
                )

    def tested(self, place: Place) -> Sequence[Question]:
        """Each trait's questions behind those for choosing."""
        first = self._reserved
        last = None if self._limit is None else first + self._limit
        return [(trait, question) for trait in self.traits for question in trait.evaluation[first:last]]

    def validation(self, place: Place, held: Sequence[Mapping[str, TruthfulQuestion]]) -> Sequence[Question]:
        """Each trait's first questions."""
        return [(t, question) for t in self.traits for question in t.evaluation[: self._reserved]]

    def asked(self, items: Sequence[Question], only: str | None) -> Iterator[tuple[Trait, list[str]]]:
        """Each trait that the metric `only` is of (all of them if it is None), with its questions."""
        for trait in self.traits:
            if only is None or only.startswith(f"{trait.name}_"):
                yield trait, [question for owner, question in items if owner is trait]
