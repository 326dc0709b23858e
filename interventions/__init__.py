"""What acts: pyvene intervention classes. Tensors in, tensors out; no files, no network, no models.

Each class works alone in a stock `pyvene.IntervenableModel` and is declared by the spec of the same kind.
"""

from subvene.interventions.ablation import AblationIntervention
from subvene.interventions.affine import Affine
from subvene.interventions.base import ActivationIntervention
from subvene.interventions.capping import CappingIntervention
from subvene.interventions.formula import DirectionFormula
from subvene.interventions.gate import Gates
from subvene.interventions.head_direction import HeadDirectionIntervention
from subvene.interventions.low_rank_edit import LowRankEditIntervention
from subvene.interventions.positions import Tokens
from subvene.interventions.pyvene_class import PyveneIntervention
from subvene.interventions.steering import SteeringIntervention
from subvene.interventions.tensors import Sizes, TensorError, TensorTable

#: Every kind, by the `kind` of its spec: a new kind is a new file and one line here.
REGISTRY: dict[str, type[ActivationIntervention]] = {
    cls.kind: cls
    for cls in (
        HeadDirectionIntervention,
        SteeringIntervention,
        LowRankEditIntervention,
        CappingIntervention,
        AblationIntervention,
        PyveneIntervention,
    )
}

__all__ = [
    "REGISTRY",
    "AblationIntervention",
    "ActivationIntervention",
    "Affine",
    "CappingIntervention",
    "DirectionFormula",
    "Gates",
    "HeadDirectionIntervention",
    "LowRankEditIntervention",
    "PyveneIntervention",
    "Sizes",
    "SteeringIntervention",
    "TensorError",
    "TensorTable",
    "Tokens",
]
