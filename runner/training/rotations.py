"""Rotations trained on counterfactual rows: the cells of a layer together, each as if it were alone.

Cells share passes and nothing else: a cell's loss reaches its own parameters alone, and every cell sees the
same rows in the same order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from subvene.interventions.pyvene_inner import make_inner
from subvene.interventions.rotation import swapped
from subvene.runner.files.reporting import curves
from subvene.runner.passes.swaps import LayerSwaps
from subvene.specs import SubveneError
from subvene.specs.recipes.das import MASKED, DASSpec, TemperatureSpec

_MASKS = ("intervention_boundaries", "masks")


class RotationError(SubveneError, ArithmeticError):
    """A rotation cannot be trained."""


@dataclass(frozen=True)
class TrainedCell:
    """A cell after its training.

    Attributes:
        inner: pyvene's intervention.
        losses: of each step, mean over its rows, without what a boundary adds.
    """

    inner: torch.nn.Module
    losses: tuple[float, ...]


def fresh(spec: DASSpec, width: int, layer: int, place: str, seed: int) -> torch.nn.Module:
    """A cell's intervention before any training; whichever cells there are beside it, it is the same.

    Args:
        spec: the recipe.
        width: of the site.
        layer: of the cell.
        place: of the cell.
        seed: of the first rotation.
    """
    text = f"{seed} {spec.site} {layer} {place}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1)
        return make_inner(options_of(spec, width), {})


def options_of(spec: DASSpec, width: int) -> dict[str, Any]:
    """What `make_inner` makes of a recipe."""
    declared = spec.declared
    return {
        "class": spec.class_name,
        "width": width,
        "low_rank_dimension": declared.get("low_rank_dimension"),
        "latent_dim": None,
        "subspace_partition": None,
    }


def train_cells(
    swaps: LayerSwaps,
    spec: DASSpec,
    labels: torch.Tensor,
    rows: torch.Tensor,
    *,
    seed: int,
    pass_tokens: int,
    width: int,
) -> dict[str, TrainedCell]:
    """Train the cells of a layer.

    Args:
        swaps: the layer's cells.
        spec: the recipe.
        labels: Long[rows of the data], the token that is to be the likeliest.
        rows: Long[n], those that are trained on.
        seed: of the first rotations and of the order of the rows.
        pass_tokens: most tokens of a pass.
        width: of the site.

    Returns:
        By place.

    Raises:
        RotationError: a loss is not finite.
    """
    device = labels.device
    places = list(swaps.swaps)
    inners = {place: fresh(spec, width, swaps.layer, place, seed).to(device) for place in places}
    optimizer = torch.optim.AdamW(_groups(spec, list(inners.values())), weight_decay=0.0)
    batches = _batches(rows, spec, seed)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, spec.warmup, len(batches)))
    # So many rows of texts are in a pass that it has no more tokens than it may.
    at_a_time = max(1, pass_tokens // (spec.batch_size * swaps.texts.ids.shape[1]))
    losses: dict[str, list[float]] = {place: [] for place in places}
    settings = spec.model_dump(mode="json", exclude={"data"}) | {"layer": swaps.layer, "seed": seed}
    with curves(f"{spec.key} layer={swaps.layer} seed={seed}", settings) as log:
        for step, batch in enumerate(batches):
            _set_temperature(spec, list(inners.values()), step, len(batches))
            optimizer.zero_grad(set_to_none=True)
            for first in range(0, len(places), at_a_time):
                chosen = places[first : first + at_a_time]
                for place, loss in zip(
                    chosen, _step(swaps, spec, inners, chosen, labels, batch), strict=True
                ):
                    losses[place].append(loss)
            rate = schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()
            told = {f"loss/{place}": of_steps[-1] for place, of_steps in losses.items()}
            log(told | {"learning_rate": rate}, step + 1)
    for place, inner in inners.items():
        inner.requires_grad_(False)
        if not all(map(math.isfinite, losses[place])):
            raise RotationError(
                f"{spec.cell_key(swaps.layer, place)}: the loss is not finite; lower the learning rate, or "
                "load the model in float32"
            )
    return {place: TrainedCell(inner, tuple(losses[place])) for place, inner in inners.items()}


def edit_of(spec: DASSpec, inner: torch.nn.Module) -> Any:
    """What an intervention does to vectors, as passes take it."""
    subspaces = spec.declared.get("subspaces")

    def edit(base: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        dtype = next(p.dtype for p in inner.parameters() if p.is_floating_point())
        return swapped(inner, base.to(dtype), source.to(dtype), subspaces)

    return edit


def _step(
    swaps: LayerSwaps,
    spec: DASSpec,
    inners: dict[str, torch.nn.Module],
    places: Sequence[str],
    labels: torch.Tensor,
    batch: torch.Tensor,
) -> list[float]:
    """The losses of some cells on a batch, their gradients added to their parameters."""
    logits = swaps.logits([(place, edit_of(spec, inners[place])) for place in places], batch)
    wanted = labels[batch].expand(len(places), -1)
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), wanted.flatten(), reduction="none"
    ).view_as(wanted)
    by_cell = loss.mean(1)
    total = by_cell.sum()
    for place in places:
        if (boundary := getattr(inners[place], "intervention_boundaries", None)) is not None:
            total = total + spec.boundary_weight * boundary.sum()
    total.backward()
    return [float(one) for one in by_cell.detach()]


def _groups(spec: DASSpec, inners: Sequence[torch.nn.Module]) -> list[dict[str, Any]]:
    """What is trained, at its rate: not the temperature, which a schedule sets."""
    rotations = [p for inner in inners for p in inner.get_submodule("rotate_layer").parameters()]
    masks = [p for inner in inners for name, p in inner.named_parameters() if name in _MASKS]
    for inner in inners:
        for name, parameter in inner.named_parameters():
            parameter.requires_grad_(name.startswith("rotate_layer.") or name in _MASKS)
    groups = [{"params": rotations, "lr": spec.learning_rate}]
    return [*groups, {"params": masks, "lr": spec.mask_learning_rate}] if masks else groups


def _batches(rows: torch.Tensor, spec: DASSpec, seed: int) -> list[torch.Tensor]:
    """The rows of every step, in an order of each epoch's own."""
    generator = torch.Generator().manual_seed(seed)
    rows = rows.cpu()
    return [
        batch
        for _ in range(spec.epochs)
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(spec.batch_size)
    ]


def _rate(warmup: float, steps: int, step: int) -> float:
    """The share of the highest rate at a step: a rise over the warm-up, then a straight fall to 0."""
    rising = int(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return max(0.0, (steps - step) / max(1, steps - rising))


def _set_temperature(spec: DASSpec, inners: Sequence[Any], step: int, steps: int) -> None:
    if spec.class_name not in MASKED:
        return
    declared = spec.temperature or TemperatureSpec()
    share = step / max(1, steps - 1)
    value = declared.first + share * (declared.last - declared.first)
    for inner in inners:
        inner.set_temperature(inner.temperature.new_tensor(value))
