"""The kinds of intervention. A new kind is a new file here and one line in ``AnyIntervention``."""

from typing import Annotated

from subvene.specs._flaws import Named
from subvene.specs.interventions.ablation import AblationSpec
from subvene.specs.interventions.base import BaseIntervention
from subvene.specs.interventions.capping import CappingSpec
from subvene.specs.interventions.head_direction import HeadDirectionSpec
from subvene.specs.interventions.low_rank_edit import LowRankEditSpec
from subvene.specs.interventions.pyvene import PyveneClass, PyveneSpec
from subvene.specs.interventions.steering import SteeringSpec

AnyIntervention = Annotated[
    HeadDirectionSpec | SteeringSpec | LowRankEditSpec | CappingSpec | AblationSpec | PyveneSpec,
    Named("kind"),
]

__all__ = [
    "AblationSpec",
    "AnyIntervention",
    "BaseIntervention",
    "CappingSpec",
    "HeadDirectionSpec",
    "LowRankEditSpec",
    "PyveneClass",
    "PyveneSpec",
    "SteeringSpec",
]
