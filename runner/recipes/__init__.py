"""How tensors come about: spec in, tensors and provenance out. A new one is a file and a line here."""

from subvene.runner.recipes.affine_map import AFFINE_MAP
from subvene.runner.recipes.angular import ANGULAR
from subvene.runner.recipes.base import Fitted, Reach, Recipe
from subvene.runner.recipes.cast import CAST
from subvene.runner.recipes.das import DAS
from subvene.runner.recipes.experts import EXPERTS
from subvene.runner.recipes.iti import ITI
from subvene.runner.recipes.localized_edit import LOCALIZED_EDIT
from subvene.runner.recipes.logistic import LOGISTIC
from subvene.runner.recipes.mean_difference import MEAN_DIFFERENCE
from subvene.runner.recipes.pca import PCA
from subvene.runner.recipes.persona import PERSONA
from subvene.runner.recipes.random_direction import RANDOM_DIRECTION
from subvene.runner.recipes.reft import REFT
from subvene.runner.recipes.refusal import REFUSAL
from subvene.runner.recipes.transfer import TRANSFER

RECIPES: dict[str, Recipe] = {
    "affine_map": AFFINE_MAP,
    "angular": ANGULAR,
    "cast": CAST,
    "das": DAS,
    "experts": EXPERTS,
    "iti": ITI,
    "localized_edit": LOCALIZED_EDIT,
    "logistic": LOGISTIC,
    "mean_difference": MEAN_DIFFERENCE,
    "pca": PCA,
    "persona": PERSONA,
    "random_direction": RANDOM_DIRECTION,
    "refusal": REFUSAL,
    "reft": REFT,
    "transfer": TRANSFER,
}

__all__ = ["RECIPES", "Fitted", "Reach", "Recipe"]
