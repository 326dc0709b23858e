"""The recipes. A new one is a new file here and a line in ``_KINDS``, and its class in ``AnyRecipe``."""

import importlib
from typing import TYPE_CHECKING, Annotated, Any

from subvene.specs._flaws import Registered
from subvene.specs._registry import Kinds
from subvene.specs.recipes.base import BaseRecipe, OneKeyRecipe

if TYPE_CHECKING:
    from subvene.specs.recipes.affine_map import AffineMapSpec
    from subvene.specs.recipes.angular import AngularSpec
    from subvene.specs.recipes.cast import CastSpec
    from subvene.specs.recipes.das import DASSpec
    from subvene.specs.recipes.experts import ExpertsSpec
    from subvene.specs.recipes.iti import ITISpec
    from subvene.specs.recipes.localized_edit import LocalizedEditSpec
    from subvene.specs.recipes.logistic import LogisticSpec
    from subvene.specs.recipes.mean_difference import MeanDifferenceSpec
    from subvene.specs.recipes.pca import PCASpec
    from subvene.specs.recipes.persona import PersonaSpec
    from subvene.specs.recipes.random_direction import RandomDirectionSpec
    from subvene.specs.recipes.reft import ReFTSpec
    from subvene.specs.recipes.refusal import RefusalSpec
    from subvene.specs.recipes.transfer import TransferSpec

_KINDS = {
    "mean_difference": "mean_difference:MeanDifferenceSpec",
    "iti": "iti:ITISpec",
    "persona": "persona:PersonaSpec",
    "localized_edit": "localized_edit:LocalizedEditSpec",
    "random_direction": "random_direction:RandomDirectionSpec",
    "das": "das:DASSpec",
    "experts": "experts:ExpertsSpec",
    "cast": "cast:CastSpec",
    "pca": "pca:PCASpec",
    "logistic": "logistic:LogisticSpec",
    "refusal": "refusal:RefusalSpec",
    "angular": "angular:AngularSpec",
    "affine_map": "affine_map:AffineMapSpec",
    "reft": "reft:ReFTSpec",
    "transfer": "transfer:TransferSpec",
}
REGISTRY = Kinds(__name__, _KINDS)
"""By `recipe`; each is imported when a file has one."""

if TYPE_CHECKING:
    AnyRecipe = (
        MeanDifferenceSpec
        | ITISpec
        | PersonaSpec
        | LocalizedEditSpec
        | RandomDirectionSpec
        | DASSpec
        | ExpertsSpec
        | CastSpec
        | PCASpec
        | LogisticSpec
        | RefusalSpec
        | AngularSpec
        | AffineMapSpec
        | ReFTSpec
        | TransferSpec
    )
else:
    AnyRecipe = Annotated[BaseRecipe, Registered("recipe", REGISTRY)]

__all__ = [
    "AffineMapSpec",
    "AngularSpec",
    "AnyRecipe",
    "BaseRecipe",
    "CastSpec",
    "DASSpec",
    "ExpertsSpec",
    "ITISpec",
    "LocalizedEditSpec",
    "LogisticSpec",
    "MeanDifferenceSpec",
    "OneKeyRecipe",
    "PCASpec",
    "PersonaSpec",
    "RandomDirectionSpec",
    "ReFTSpec",
    "RefusalSpec",
    "TransferSpec",
]

_LATER = {cls: module for module, _, cls in (place.partition(":") for place in _KINDS.values())}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
