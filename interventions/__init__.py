"""What acts: pyvene intervention classes. Tensors in, tensors out; no files, no network, no models.

Each class works alone in a stock `pyvene.IntervenableModel` and is declared by the spec of the same kind.
"""

from subvene.interventions.ablation import AblationIntervention as AblationIntervention
from subvene.interventions.affine import Affine
from subvene.interventions.affine_map import AffineIntervention as AffineIntervention
from subvene.interventions.base import ActivationIntervention
from subvene.interventions.capping import CappingIntervention as CappingIntervention
from subvene.interventions.columns import Columns
from subvene.interventions.formula import DirectionFormula
from subvene.interventions.gate import Gates
from subvene.interventions.head_direction import HeadDirectionIntervention as HeadDirectionIntervention
from subvene.interventions.low_rank_edit import LowRankEditIntervention as LowRankEditIntervention
from subvene.interventions.noise import NoiseIntervention as NoiseIntervention
from subvene.interventions.plane_rotation import RotationIntervention as RotationIntervention
from subvene.interventions.positions import Tokens
from subvene.interventions.pyvene_class import PyveneIntervention as PyveneIntervention
from subvene.interventions.sae_feature import SaeFeatureIntervention as SaeFeatureIntervention
from subvene.interventions.scaling import ScalingIntervention as ScalingIntervention
from subvene.interventions.steering import SteeringIntervention as SteeringIntervention
from subvene.interventions.tensors import InventedTable, Sizes, TensorError, TensorTable

#: Every kind that is imported above, by the `kind` of its spec: a new kind is a new file and one import.
REGISTRY: dict[str, type[ActivationIntervention]] = {
    cls.kind: cls
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, ActivationIntervention) and cls is not ActivationIntervention
}

__all__ = [
    "REGISTRY",
    "ActivationIntervention",
    "Affine",
    "Columns",
    "DirectionFormula",
    "Gates",
    "InventedTable",
    "Sizes",
    "TensorError",
    "TensorTable",
    "Tokens",
]
__all__ += [cls.__name__ for cls in REGISTRY.values()]
