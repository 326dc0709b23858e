"""How tensors come about: spec in, tensors and provenance out. A new one is a file and a line here."""

from subvene.runner.recipes.base import Fitted
from subvene.runner.recipes.mean_difference import fit_mean_difference

RECIPES = {
    "mean_difference": fit_mean_difference,
}

__all__ = ["RECIPES", "Fitted"]
