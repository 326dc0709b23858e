"""Random directions: drawn uniformly over all directions, as long as another fit's at each place.

A direction of independent normal numbers, brought to a length, is uniform on the sphere of that length
(Muller 1959). Directions of heads are drawn head by head; whatever else another fit gives beside its
directions (σ, the typical norm of the activation) is kept, so that strengths mean the same. Of a plane both
directions are drawn, and one direction that stands at several places is drawn once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from subvene.interventions import Sizes
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.identity import tensors_digest
from subvene.runner.recipes.base import Fitted, Made, Origin, Reach, Recipe
from subvene.specs import RandomDirectionSpec, SubveneError, parse_tensor_name, tensor_name

_NO_DIRECTIONS = frozenset({"a", "b", "weight", "bias"})
_PLANE = frozenset({"first", "second"})


def draw(spec: RandomDirectionSpec, tensors: Mapping[str, torch.Tensor], *, seed: int) -> Fitted:
    """Draw a direction in place of each of another fit's.

    Args:
        spec: the recipe.
        tensors: what the other fit gives, by full name.
        seed: of the experiment.

    Raises:
        SubveneError: the other fit gives no directions.
    """
    own = seed if spec.seed is None else spec.seed
    drawn: dict[str, torch.Tensor] = {}
    directions = 0
    seen: list[tuple[str, torch.Tensor]] = []
    for name, tensor in sorted(tensors.items()):
        place = parse_tensor_name(name)
        if place is None or place.part in _NO_DIRECTIONS:
            raise SubveneError(
                f"recipe {spec.recipe}: {spec.like!r} gives {name}, which is no direction; `like` names "
                "a fit of directions (mean_difference, persona, iti)"
            )
        mine = tensor_name(spec.key, place.site, place.layer, place.part)
        if place.part is not None and place.part not in _PLANE:
            drawn[mine] = tensor.clone()
            continue
        directions += 1
        part = "" if place.part is None else f".{place.part}"
        word = hashlib.sha256(_first(seen, f"{place.site}[{place.layer}]{part}", tensor).encode()).digest()
        rng = np.random.default_rng([own, int.from_bytes(word[:8], "big")])
        normal = torch.from_numpy(rng.standard_normal(tuple(tensor.shape))).to(torch.float64)
        norm = tensor.double().norm(dim=-1, keepdim=True)
        drawn[mine] = (normal / normal.norm(dim=-1, keepdim=True) * norm).to(tensor.dtype)
    return Fitted(
        drawn,
        {
            "recipe": spec.recipe,
            "key": spec.key,
            "like": spec.like,
            "like_sha256": tensors_digest(tensors),
            "seed": own,
            "directions": directions,
        },
    )


def _first(seen: list[tuple[str, torch.Tensor]], place: str, tensor: torch.Tensor) -> str:
    """The place where a direction stood first: one that stands at several places is one when drawn, too."""
    for earlier, other in seen:
        if torch.equal(other, tensor):
            return earlier
    seen.append((place, tensor))
    return place


def _read(spec: RandomDirectionSpec, folder: Path) -> dict[str, torch.Tensor]:
    """Nothing is read: what it is made from is fitted first."""
    return {}


def _given(spec: RandomDirectionSpec, data: Any) -> Any:
    raise SubveneError("data: random directions are made from another fit of the file, not from data")


def _check(spec: RandomDirectionSpec, data: Any, seed: int) -> None:
    """There is nothing that could be wrong before the other fit is there."""


def _made(spec: RandomDirectionSpec, data: Any, origin: Origin) -> Mapping[str, torch.Tensor]:
    return origin.tensors


def _reach(spec: RandomDirectionSpec, sizes: Sizes) -> Reach:
    raise NotImplementedError("it reaches what the fit that it is made from reaches")


def _fit(
    spec: RandomDirectionSpec,
    tensors: Mapping[str, torch.Tensor],
    anatomy: Anatomy,
    tokenizer: Any,
    *,
    seed: int,
    work: Path | None,
) -> Fitted:
    return draw(spec, tensors, seed=seed)


RANDOM_DIRECTION = Recipe(_read, _given, _check, _reach, tensors_digest, _fit, Made(_made))
