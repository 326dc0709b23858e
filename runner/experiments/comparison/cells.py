"""A cell of a comparison: one condition at one point, for one seed and fold, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from subvene.runner.data.truthfulqa.questions import Question
from subvene.runner.data.truthfulqa.splits import validation_keys
from subvene.runner.experiments.results import Point
from subvene.runner.recipes.trained import held_out_keys
from subvene.specs import ConditionSpec, ITISpec
from subvene.specs.recipes import BaseRecipe
from subvene.specs.recipes.trained import TrainedRecipe


@dataclass(frozen=True)
class Cell:
    """One condition at one point of its sweep, for one seed and fold."""

    condition: ConditionSpec
    seed: int
    fold: int
    point: Point


def without(
    tuning: Mapping[str, Sequence[Question]], fits: Iterable[BaseRecipe], unseen: frozenset[str]
) -> dict[str, list[Question]]:
    """What each fit may learn from while a point is chosen by the questions `unseen`.

    Trained edits hold their validation questions out by themselves.
    """
    shown = {recipe.keys[0] for recipe in fits if isinstance(recipe, ITISpec)}
    return {
        key: [q for q in questions if key not in shown or q.key not in unseen]
        for key, questions in tuning.items()
    }


def held_out(recipe: BaseRecipe, tuning: Sequence[Question], seed: int) -> Mapping[str, Question]:
    """By key, the questions that a fit holds out for validation."""
    keys: frozenset[str] = frozenset()
    if isinstance(recipe, ITISpec):
        keys = validation_keys(tuning, recipe.validation, seed)
    elif isinstance(recipe, TrainedRecipe):
        keys = held_out_keys(recipe, tuning, seed)
    return {q.key: q for q in tuning if q.key in keys}


def in_words(point: Point) -> str:
    """`strength=5, k=16`: the last part of each path, with its value."""
    return ", ".join(f"{path.rpartition('.')[2]}={value}" for path, value in point.items())


def file_name(point: Point) -> str:
    """The same as a part of a file's name; nothing for a condition without a sweep."""
    words = in_words(point).replace(", ", "-").replace("=", "")
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in words)
