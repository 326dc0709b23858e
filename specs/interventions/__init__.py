"""The kinds of intervention. A new kind is a new file here and one line among the imports."""

from typing import TYPE_CHECKING, Annotated

from subvene.specs._registry import Registered, by_name
from subvene.specs.interventions.ablation import AblationSpec as AblationSpec
from subvene.specs.interventions.affine import AffineSpec as AffineSpec
from subvene.specs.interventions.base import BaseIntervention as BaseIntervention
from subvene.specs.interventions.capping import CappingSpec as CappingSpec
from subvene.specs.interventions.head_direction import HeadDirectionSpec as HeadDirectionSpec
from subvene.specs.interventions.low_rank_edit import LowRankEditSpec as LowRankEditSpec
from subvene.specs.interventions.noise import NoiseSpec as NoiseSpec
from subvene.specs.interventions.pyvene import PyveneClass as PyveneClass
from subvene.specs.interventions.pyvene import PyveneSpec as PyveneSpec
from subvene.specs.interventions.rotation import RotationSpec as RotationSpec
from subvene.specs.interventions.sae_feature import SaeFeatureSpec as SaeFeatureSpec
from subvene.specs.interventions.scaling import ScalingSpec as ScalingSpec
from subvene.specs.interventions.steering import SteeringSpec as SteeringSpec

#: Every kind that is imported above, by its `kind`.
REGISTRY: dict[str, type[BaseIntervention]] = by_name("kind", BaseIntervention, globals().values())

AnyIntervention = Annotated[BaseIntervention, Registered("kind", REGISTRY)]

if not TYPE_CHECKING:  # which would take a list that is computed for an empty one
    __all__ = ["AnyIntervention", *(cls.__name__ for cls in REGISTRY.values())]
