"""Scaling: a gain for each neuron or head.

Dampening of experts (AurA, Damp, Det0: Suau et al. 2024, "Whispering Experts", arXiv:2407.12824)
and ablation of heads (Michel et al. 2019, arXiv:1905.10650, equation 2) are choices of the gains.
"""

from __future__ import annotations

from typing import Any, Self

import torch

from subvene.interventions.affine import Affine
from subvene.interventions.base import ActivationIntervention
from subvene.interventions.tensors import Sizes, TensorError, TensorTable, stored_name
from subvene.specs import ScalingSpec
from subvene.specs.interventions.scaling import HEADED


class ScalingIntervention(ActivationIntervention):
    """h_i ← h_i + (g_i − 1)·h_i = g_i·h_i.

    Args:
        gains: g, shape [width].
        **kwargs: see `ActivationIntervention`; `strength` 1 multiplies by the gains, 0.5 goes half-way.
    """

    kind = "scaling"
    buffer_names = ("gains",)
    linear_in_strength = True
    acts_alone = True
    #: Whether the spec says the gains itself, so that an artifact keeps no tensor.
    is_said = False

    def __init__(self, gains: torch.Tensor | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_buffer("gains", torch.zeros(0) if gains is None else gains.detach().float())

    @classmethod
    def build(cls, spec: ScalingSpec, table: TensorTable, sizes: Sizes) -> list[tuple[str, int | None, Self]]:
        key = "" if spec.gains is None else spec.gains.key
        layers = table.layers(key, spec.site) if spec.layer is None else [spec.layer]
        if not layers:
            raise TensorError(f"{table.origin}: no gains under the key {key!r} at the site {spec.site}")
        built: list[tuple[str, int | None, Self]] = []
        for layer in layers:
            gains = _said(spec, layer, sizes) if spec.gains is None else _stored(spec, table, layer, sizes)
            edit = cls(gains, strength=torch.tensor(spec.strength), positions=spec.positions)
            edit.is_said = spec.gains is None
            built.append((spec.site, layer, edit))
        return built

    def stored(self, key: str, site: str, layer: int | None) -> dict[str, torch.Tensor]:
        return {} if self.is_said else {stored_name(key, site, layer): self.gains}

    def delta(self, h: torch.Tensor) -> torch.Tensor:
        return (self.gains.to(h.dtype) - 1) * h

    def affine(self) -> Affine:
        change = self.gains.detach().cpu().double() - 1
        changed = change.nonzero().flatten()
        # One row a neuron that is changed: maps have no other form for a diagonal.
        readers = change.new_zeros(len(changed), len(change))
        readers[torch.arange(len(changed)), changed] = 1
        return Affine.linear(readers, readers * change[changed].unsqueeze(-1))

    @property
    def depends_on_activation(self) -> bool:
        # As the map says, without making it.
        return self.expects_change

    @property
    def expects_change(self) -> bool:
        return bool((self.gains != 1).any())


def _stored(spec: ScalingSpec, table: TensorTable, layer: int, sizes: Sizes) -> torch.Tensor:
    """The gains of a layer by column, stored by column or by head."""
    key, width = "" if spec.gains is None else spec.gains.key, sizes.site_width(spec.site, layer)
    name = table.find(key, spec.site, layer)
    heads = width // sizes.head_dim if spec.site in HEADED else None
    if name is not None and heads is not None and table.tensors.get(name, torch.zeros(0)).shape == (heads,):
        gains = table.get(key, spec.site, layer, shape=(heads,))
        return gains.repeat_interleave(sizes.head_dim)
    return table.get(key, spec.site, layer, shape=(width,))


def _said(spec: ScalingSpec, layer: int, sizes: Sizes) -> torch.Tensor:
    """The gains of a spec that names its neurons or heads.

    Raises:
        TensorError: the site has no such neuron or head.
    """
    width = sizes.site_width(spec.site, layer)
    unit, chosen, what = (
        (1, spec.neurons, "neurons") if spec.heads is None else (sizes.head_dim, spec.heads, "heads")
    )
    count = width // unit
    if beyond := [one for one in chosen or () if one >= count]:
        raise TensorError(
            f"{what}: expected {what} from 0 to {count - 1} at {spec.site}[{layer}], found {beyond[0]}"
        )
    gains = torch.ones(count, unit)
    gains[list(chosen or ())] = float(spec.gain or 0.0)
    return gains.flatten()
