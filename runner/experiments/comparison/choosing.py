"""What choosing a point of a sweep asks of questions: which a fit has not seen, and which it may not see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from subvene.runner.data.truthfulqa.questions import Question
from subvene.runner.data.truthfulqa.splits import validation_keys
from subvene.runner.edits.not_finite import NotFiniteError
from subvene.runner.experiments.results import Tried
from subvene.runner.recipes.localized_edit import held_out_keys
from subvene.specs import ChooseSpec, ITISpec, LocalizedEditSpec, SubveneError
from subvene.specs.recipes import BaseRecipe


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
