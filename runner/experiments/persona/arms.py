"""Arms: what the declared conditions mean for one trait, several coefficients spread out."""

from __future__ import annotations

from dataclasses import dataclass

from subvene.specs import SteeringSpec, SubveneError, TraitConditionsSpec
from subvene.specs.evaluations.traits import Ablated, Capped, Steered, TraitCondition


@dataclass(frozen=True)
class Arm:
    """One condition of one trait.

    Attributes:
        condition: as it is declared.
        label: what tables call it; of several coefficients each has its own.
        coefficient: of the steering; None where nothing is added.
        layers: the layers that are edited; empty if none is.
    """

    condition: TraitCondition
    label: str
    coefficient: float | None = None
    layers: tuple[int, ...] = ()

    @property
    def swept(self) -> bool:
        """Whether it is one of several coefficients, which go on where one of them is no longer finite."""
        return isinstance(self.condition, Steered) and len(self.condition.coefficients or ()) > 1


def arms_of(declared: TraitConditionsSpec, steering: SteeringSpec) -> list[Arm]:
    """The arms that are declared, several coefficients spread out; those that others need come first."""
    found: list[Arm] = []
    for condition in declared.conditions:
        name = condition.name or condition.kind
        if isinstance(condition, Steered):
            for value in condition.coefficients or (one_number(steering),):
                label = name if condition.coefficients is None else f"{name} {value:g}"
                found.append(Arm(condition, label, value, (steering.layer,)))
        elif isinstance(condition, Capped | Ablated):
            first, last = condition.layers or (steering.layer, steering.layer)
            found.append(Arm(condition, name, None, tuple(range(first, last + 1))))
        else:
            found.append(Arm(condition, name))
    return found


def one_number(steering: SteeringSpec) -> float:
    """The coefficient of a steering intervention.

    Raises:
        SubveneError: it is a list, one number per row of a batch that this is not.
    """
    if isinstance(steering.coefficient, float):
        return steering.coefficient
    raise SubveneError(
        f"interventions: {steering.name or steering.vector.key}: coefficient: expected one number, since "
        "traits are measured in batches of their own; other coefficients stand in `trait_sweep` or in a "
        "`steered` condition"
    )
