"""A cell of a comparison: one condition at one point, for one seed and fold, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from subvene.runner.data.truthfulqa.questions import Question
from subvene.runner.data.truthfulqa.splits import validation_keys
from subvene.runner.edits.not_finite import NotFiniteError
from subvene.runner.experiments.results import Tried
from subvene.runner.recipes.localized_edit import held_out_keys
from subvene.specs import ChooseSpec, ConditionSpec, ITISpec, LocalizedEditSpec, SubveneError
from subvene.specs.recipes import BaseRecipe


@dataclass(frozen=True)
class Cell:
    """One condition at one point of its sweep, for one seed and fold."""

    condition: ConditionSpec
    seed: int
    fold: int
    point: dict[str, Any]


def held_out(recipe: BaseRecipe, tuning: Sequence[Question], seed: int) -> Mapping[str, Question]:
    """By key, the questions that a fit holds out for validation."""
    keys: frozenset[str] = frozenset()
    if isinstance(recipe, ITISpec):
        keys = validation_keys(tuning, recipe.validation, seed)
    elif isinstance(recipe, LocalizedEditSpec):
        keys = held_out_keys(recipe, tuning, seed)
    return {q.key: q for q in tuning if q.key in keys}


def no_choice(name: str, choose: ChooseSpec, tried: Sequence[Tried]) -> SubveneError:
    """Why no point of a sweep can be taken: none stays finite, or none is high enough in what it must be."""
    floors = " and ".join(f"{metric} of at least {least:g}" for metric, least in choose.at_least.items())
    said = f"condition {name}: no point of its sweep stays finite" + (f" and has {floors}" if floors else "")
    said += " on the validation questions; "
    broken = [one.not_finite for one in tried if one.not_finite is not None]
    return NotFiniteError(said + broken[-1]) if broken else SubveneError(f"{said}none is high enough")


def in_words(point: Mapping[str, Any]) -> str:
    """`strength=5, k=16`: the last part of each path, with its value."""
    return ", ".join(f"{path.rpartition('.')[2]}={value}" for path, value in point.items())


def file_name(point: Mapping[str, Any]) -> str:
    """The same as a part of a file's name; nothing for a condition without a sweep."""
    words = in_words(point).replace(", ", "-").replace("=", "")
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in words)
