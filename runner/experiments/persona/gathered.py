"""What a persona experiment puts together trait by trait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from subvene.runner.data.traits import Trait, question_key
from subvene.runner.experiments.persona.cost import Cost
from subvene.runner.experiments.persona.section import Edit, TraitRecord
from subvene.runner.experiments.results import Choice, Condition, Item, QuestionText
from subvene.specs import SteeringSpec


class MadeVectors(TypedDict):
    """Of the unit of a trait's vectors: where they are, their digest, and the variance explained by layer."""

    folder: str
    tensors: str
    explained: list[float | None]


@dataclass
class Gathered:
    """What there is so far; the cost's reference is computed once for all of them."""

    notes: list[str]
    conditions: list[Condition] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    questions: dict[str, QuestionText] = field(default_factory=dict)
    traits: dict[str, TraitRecord] = field(default_factory=dict)
    steering: dict[str, SteeringSpec] = field(default_factory=dict)
    cost: Cost | None = None

    def untouched(
        self, traits: Sequence[Trait]
    ) -> tuple[list[tuple[Trait, tuple[Item, ...]]], dict[str, QuestionText]]:
        """Of each trait that has a baseline what that answers, and the questions."""
        said = {
            condition.group: condition.items
            for condition in self.conditions
            if Edit.of(condition).kind == "baseline"
        }
        return [(trait, said[trait.name]) for trait in traits if trait.name in said], self.questions

    def ask(self, questions: Sequence[str]) -> None:
        """Name questions that were asked."""
        self.questions |= {question_key(text): QuestionText(question=text) for text in questions}
