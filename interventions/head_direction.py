"""Head directions: inference-time intervention (Li et al. 2023, arXiv:2306.03341, equation 2)."""

from __future__ import annotations

from typing import Any, Self

import torch

from subvene.interventions.base import ActivationIntervention
from subvene.interventions.tensors import Sizes, TensorError, TensorTable, stored_name
from subvene.specs import HeadDirectionSpec, tensor_name


class HeadDirectionIntervention(ActivationIntervention):
    """o_h ← o_h + α·σ_h·θ_h for the chosen heads of one layer, at the input of the output projection.

    Args:
        directions: σ_h·θ̂_h by head, shape [n_heads, head_dim]; zero rows are heads that are left alone.
        sigma: σ_h, shape [n_heads], where it is kept beside the directions rather than folded in.
        **kwargs: see `ActivationIntervention`; `strength` is α.
    """

    kind = "head_direction"
    buffer_names = ("directions", "sigma", "shift")

    def __init__(
        self, directions: torch.Tensor | None = None, sigma: torch.Tensor | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        directions = torch.zeros(0, 0) if directions is None else directions.detach().float()
        sigma = torch.ones(directions.shape[0]) if sigma is None else sigma.detach().float()
        self.register_buffer("directions", directions)
        self.register_buffer("sigma", sigma)
        # All heads of the layer in one vector, so that the edit costs one operation however many there are.
        self.register_buffer("shift", (sigma.unsqueeze(-1) * directions).flatten())

    @classmethod
    def build(
        cls, spec: HeadDirectionSpec, table: TensorTable, sizes: Sizes
    ) -> list[tuple[str, int | None, Self]]:
        key = spec.directions.key
        layers = sorted(spec.heads) if spec.heads is not None else table.layers(key, spec.site)
        if not layers:
            raise TensorError(
                f"{table.origin}: no directions under the key {key!r}; "
                f"they are stored one a layer, as {tensor_name(key, spec.site, 0)!r} [n_heads, head_dim]"
            )
        built: list[tuple[str, int | None, Self]] = []
        strength = torch.tensor(spec.strength)
        for layer in layers:
            directions = table.get(key, spec.site, layer, shape=(sizes.n_heads, sizes.head_dim))
            sigma = None
            if table.find(key, spec.site, layer, "sigma") is not None:
                sigma = table.get(key, spec.site, layer, part="sigma", shape=(sizes.n_heads,))
            if spec.heads is not None:
                chosen = torch.zeros(sizes.n_heads, 1)
                chosen[list(spec.heads[layer])] = 1.0
                if zero := [head for head in spec.heads[layer] if not directions[head].any()]:
                    name = table.find(key, spec.site, layer)
                    raise TensorError(
                        f"{table.origin}: tensor {name!r} is zero at the chosen heads {zero}, "
                        "so they have no direction"
                    )
                directions = directions * chosen
            elif not directions.any():
                # A fit may store every layer and leave those without a chosen head zero: nothing to do there.
                continue
            built.append(
                (spec.site, layer, cls(directions, sigma, strength=strength, positions=spec.positions))
            )
        if not built:
            raise TensorError(f"{table.origin}: the directions {key!r} are zero at every layer and head")
        return built

    def stored(self, key: str, site: str, layer: int | None) -> dict[str, torch.Tensor]:
        return {
            stored_name(key, site, layer): self.directions,
            stored_name(key, site, layer, "sigma"): self.sigma,
        }

    def delta(self, h: torch.Tensor) -> torch.Tensor:
        return self.shift

    @property
    def is_additive(self) -> bool:
        return True
