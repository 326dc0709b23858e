"""Arms that are edits of one model, as one model whose interventions are those of all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from subvene.runner.experiments.comparison.arms import Arm, Arms
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import TensorRef
from subvene.specs.interventions import BaseIntervention


def side_by_side(arms: Arms, some: Sequence[Arm]) -> tuple[IntervenedModel, list[dict[str, float]]]:
    """A model with the interventions of several arms, each under a name of its own.

    Args:
        arms: where these come from.
        some: arms with interventions whose tensors were fitted, unbaked.

    Returns:
        The model, and of each arm the strengths of its interventions by their names there.
    """
    declared: list[BaseIntervention] = []
    versions: list[dict[str, float]] = []
    tensors: dict[str, torch.Tensor] = {}
    for number, arm in enumerate(some):
        if arm.variant is None or arm.fitted is None:
            raise ValueError("an arm without fitted interventions has none to stand beside others")
        own = [_renamed(one, number, place) for place, one in enumerate(arm.variant.interventions)]
        declared += own
        versions.append({str(one.name): float(one.strength) for one in own})
        tensors |= {f"arm{number}_{name}": tensor for name, tensor in arms.tensors(arm.fitted).items()}
    variant = some[0].variant
    if variant is None:
        raise ValueError("there is no arm")
    spec = variant.model_copy(update={"interventions": tuple(declared)})
    return arms.compiled_with(spec, tensors), versions


def _renamed(one: BaseIntervention, number: int, place: int) -> BaseIntervention:
    """An intervention that takes its tensors from under its arm's number."""
    changed: dict[str, object] = {"name": f"arm{number}_{place}"}
    for field in type(one).model_fields:
        ref = getattr(one, field)
        if isinstance(ref, TensorRef) and ref.file is None:
            changed[field] = ref.model_copy(update={"key": f"arm{number}_{ref.key}"})
    return one.model_copy(update=changed)
