"""Arms that are edits of one model, as one model whose interventions are those of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from subvene.runner.edits.compile import entry_name
from subvene.runner.experiments.comparison.arms import Arm, Arms
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import TensorRef
from subvene.specs.interventions import BaseIntervention


@dataclass(frozen=True)
class SideBySide:
    """Several arms as one model.

    Attributes:
        model: with the interventions of all of them, each under a name of its own.
        strengths: of each arm, by these names, of its own interventions.
        names: of each arm, by these names, what its interventions are called in the arm alone.
    """

    model: IntervenedModel
    strengths: list[dict[str, float]]
    names: list[dict[str, str]]


def side_by_side(arms: Arms, some: Sequence[Arm]) -> SideBySide:
    """Put arms side by side.

    Args:
        arms: where these come from.
        some: arms with interventions whose tensors were fitted, unbaked; at least one.
    """
    declared: list[BaseIntervention] = []
    strengths: list[dict[str, float]] = []
    names: list[dict[str, str]] = []
    tensors: dict[str, torch.Tensor] = {}
    for number, arm in enumerate(some):
        if arm.variant is None or arm.fitted is None:
            raise ValueError("an arm without fitted interventions has none to stand beside others")
        prefix = f"arm{number}_"
        own = [_renamed(one, prefix, place) for place, one in enumerate(arm.variant.interventions)]
        declared += own
        strengths.append({str(one.name): _number(one) for one in own})
        names.append({str(one.name): entry_name(arm.variant, place) for place, one in enumerate(own)})
        tensors |= {f"{prefix}{name}": tensor for name, tensor in arms.tensors(arm.fitted).items()}
    variant = some[0].variant
    if variant is None:
        raise ValueError("there is no arm")
    spec = variant.model_copy(update={"interventions": tuple(declared)})
    return SideBySide(arms.compiled_with(spec, tensors), strengths, names)


def _renamed(one: BaseIntervention, prefix: str, place: int) -> BaseIntervention:
    """An intervention that takes its tensors from under its arm's prefix."""
    changed: dict[str, object] = {"name": f"{prefix}{place}"}
    for field in type(one).model_fields:
        ref = getattr(one, field)
        if isinstance(ref, TensorRef) and ref.file is None:
            changed[field] = ref.model_copy(update={"key": f"{prefix}{ref.key}"})
    return one.model_copy(update=changed)


def _number(one: BaseIntervention) -> float:
    if isinstance(one.strength, tuple):
        raise ValueError(f"{one.name}: expected one strength, found one for each row")
    return float(one.strength)
