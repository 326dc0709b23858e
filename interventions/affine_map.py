"""Affine maps of the activation, diagonal, low-rank or dense.

Linear transport of single neurons (Linear-AcT: Rodriguez et al. 2024, arXiv:2410.23054) is diagonal; maps
between languages that are fitted by least squares (INCLINE) are dense.
"""

from __future__ import annotations

from typing import Any, Self

import torch

from subvene.interventions.affine import Affine
from subvene.interventions.base import ActivationIntervention
from subvene.interventions.tensors import Sizes, TensorTable, stored_name
from subvene.specs import AffineSpec


class AffineIntervention(ActivationIntervention):
    """h ← h + s·(W·h + b − h).

    Args:
        weight: W, [width, width], or its diagonal, [width]; None where factors make it.
        bias: b, [width].
        a: readers, [rank, width], and
        b: writers, [rank, width]: W = I + Σ_r b_r·a_rᵀ.
        **kwargs: see `ActivationIntervention`; `strength` is s.
    """

    kind = "affine"
    buffer_names = ("weight", "bias", "a", "b")
    linear_in_strength = True
    acts_alone = True

    def __init__(
        self,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        a: torch.Tensor | None = None,
        b: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, tensor in (("weight", weight), ("bias", bias), ("a", a), ("b", b)):
            self.register_buffer(name, torch.zeros(0) if tensor is None else tensor.detach().float())

    @classmethod
    def build(cls, spec: AffineSpec, table: TensorTable, sizes: Sizes) -> list[tuple[str, int | None, Self]]:
        layers = table.one_or_all(spec.layer, spec.map.key, spec.site, "bias")
        return [(spec.site, layer, cls._at(spec, layer, table, sizes)) for layer in layers]

    @classmethod
    def _at(cls, spec: AffineSpec, layer: int, table: TensorTable, sizes: Sizes) -> Self:
        width = sizes.site_width(spec.site, layer)
        shapes: dict[str, tuple[int, ...]] = {"bias": (width,)}
        if spec.form == "low_rank":
            shapes |= dict.fromkeys(("a", "b"), (spec.rank, width))
        else:
            shapes["weight"] = (width,) if spec.form == "diagonal" else (width, width)
        parts = {
            part: table.get(spec.map.key, spec.site, layer, part=part, shape=shape)
            for part, shape in shapes.items()
        }
        return cls(**parts, strength=torch.tensor(spec.strength), positions=spec.positions)

    def stored(self, key: str, site: str, layer: int | None) -> dict[str, torch.Tensor]:
        return {
            stored_name(key, site, layer, name): tensor
            for name in self.buffer_names
            if (tensor := getattr(self, name)).numel()
        }

    def delta(self, h: torch.Tensor) -> torch.Tensor:
        bias = self.bias.to(h.dtype)
        if self.a.numel():
            return (h @ self.a.to(h.dtype).T) @ self.b.to(h.dtype) + bias
        weight = self.weight.to(h.dtype)
        return (weight * h if weight.ndim == 1 else h @ weight.T) - h + bias

    def affine(self) -> Affine:
        if self.a.numel():
            linear = Affine.linear(self.a, self.b)
        else:
            weight = self.weight.detach().cpu().double()
            unit = torch.eye(weight.shape[-1], dtype=torch.float64)
            change = (torch.diag(weight) if weight.ndim == 1 else weight) - unit
            read = change.any(0)
            linear = Affine.linear(unit[read], change.T[read])
        return Affine(linear.a, linear.b, self.bias.detach().cpu().double())

    @property
    def expects_change(self) -> bool:
        affine = self.affine()
        return bool((affine.a.any() and affine.b.any()) or affine.d.any())
