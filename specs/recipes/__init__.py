"""The recipes. A new one is a new file here and one line in ``AnyRecipe``."""

from typing import Annotated

from subvene.specs._flaws import Named
from subvene.specs.recipes.base import BaseRecipe, OneKeyRecipe
from subvene.specs.recipes.iti import ITISpec
from subvene.specs.recipes.localized_edit import LocalizedEditSpec
from subvene.specs.recipes.mean_difference import MeanDifferenceSpec
from subvene.specs.recipes.persona import PersonaSpec
from subvene.specs.recipes.random_direction import RandomDirectionSpec

AnyRecipe = Annotated[
    MeanDifferenceSpec | ITISpec | PersonaSpec | LocalizedEditSpec | RandomDirectionSpec,
    Named("recipe"),
]

__all__ = [
    "AnyRecipe",
    "BaseRecipe",
    "ITISpec",
    "LocalizedEditSpec",
    "MeanDifferenceSpec",
    "OneKeyRecipe",
    "PersonaSpec",
    "RandomDirectionSpec",
]
