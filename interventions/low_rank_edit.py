"""Low-rank localized edits ("Does Editing Provide Evidence for Localization?", Wang and Veitch 2025)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch

from subvene.interventions.affine import Affine
from subvene.interventions.base import ActivationIntervention
from subvene.interventions.tensors import Sizes, TensorError, TensorTable, stored_name
from subvene.specs import LowRankEditSpec, parse_tensor_name, tensor_name


class LowRankEditIntervention(ActivationIntervention):
    """o ← o + Σ_r ⟨a_r, o⟩·b_r at the input of the output projection; b_r is zero outside the written heads.

    At all positions this is the weight update W ← W + (W·B)·A of the output projection.

    Args:
        a: readers, shape [rank, n_heads*head_dim].
        b: writers, shape [rank, n_heads*head_dim].
        read_mask, write_mask: shape [n_heads*head_dim], 1 where a may read and b may write. The masks act in
            the forward pass, so that training cannot leave the chosen heads.
        **kwargs: see `ActivationIntervention`.
    """

    kind = "low_rank_edit"
    buffer_names = ("read_mask", "write_mask")
    parameter_names = ("a", "b")
    linear_in_strength = True
    acts_alone = True

    def __init__(
        self,
        a: torch.Tensor | None = None,
        b: torch.Tensor | None = None,
        read_mask: torch.Tensor | None = None,
        write_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        a = torch.zeros(0, 0) if a is None else a
        b = torch.zeros_like(a) if b is None else b
        self.a = torch.nn.Parameter(a.detach().clone().float())
        self.b = torch.nn.Parameter(b.detach().clone().float())
        ones = torch.ones(a.shape[-1])
        self.register_buffer("read_mask", ones if read_mask is None else read_mask.float())
        self.register_buffer("write_mask", ones if write_mask is None else write_mask.float())

    @classmethod
    def build(
        cls, spec: LowRankEditSpec, table: TensorTable, sizes: Sizes
    ) -> list[tuple[str, int | None, Self]]:
        width = sizes.n_heads * sizes.head_dim
        if spec.layer is None:
            return [
                built for layer in _stored_layers(spec, table) for built in cls.build(layer, table, sizes)
            ]
        if spec.factors is None:
            # Kaiming-uniform A and zero B, as LoRA starts; both zero would be a saddle without a gradient.
            a = torch.empty(spec.rank, width)
            generator = torch.Generator().manual_seed(spec.seed)
            torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
            b = torch.zeros(spec.rank, width)
        else:
            a, b = (
                table.get(spec.factors.key, spec.site, spec.layer, part=part, shape=(spec.rank, width))
                for part in ("a", "b")
            )
        edit = cls(
            a,
            b,
            read_mask=_head_mask(spec.read_heads, sizes),
            write_mask=_head_mask(spec.write_heads, sizes),
            strength=torch.tensor(spec.strength),
            positions=spec.positions,
        )
        return [(spec.site, spec.layer, edit)]

    def stored(self, key: str, site: str, layer: int | None) -> dict[str, torch.Tensor]:
        return {
            stored_name(key, site, layer, "a"): self.a.detach() * self.read_mask,
            stored_name(key, site, layer, "b"): self.b.detach() * self.write_mask,
        }

    def delta(self, h: torch.Tensor) -> torch.Tensor:
        readers = (self.a * self.read_mask).to(h.dtype)
        writers = (self.b * self.write_mask).to(h.dtype)
        return (h @ readers.T) @ writers

    def affine(self) -> Affine:
        return Affine.linear(self.a * self.read_mask, self.b * self.write_mask)

    @property
    def expects_change(self) -> bool:
        # A fresh edit is the identity until it is trained.
        return bool(torch.any(self.b * self.write_mask != 0))


def _stored_layers(spec: LowRankEditSpec, table: TensorTable) -> list[LowRankEditSpec]:
    """The entry once for each layer that its key is stored for, with the rank that is stored there."""
    key = "" if spec.factors is None else spec.factors.key
    ranks = {
        found.layer: table.tensors[name].shape[0]
        for name in table.tensors
        if (found := parse_tensor_name(name)) and (found.key, found.site, found.part) == (key, spec.site, "a")
    }
    if not ranks:
        raise TensorError(
            f"{table.origin}: no factors under the key {key!r}; they are stored in pairs, as "
            f"{tensor_name(key, spec.site, 0, 'a')!r} and {tensor_name(key, spec.site, 0, 'b')!r} "
            "[rank, n_heads*head_dim]"
        )
    return [spec.model_copy(update={"layer": layer, "rank": ranks[layer]}) for layer in sorted(ranks)]


def _head_mask(heads: Sequence[int] | str, sizes: Sizes) -> torch.Tensor:
    mask = torch.ones(sizes.n_heads) if heads == "all" else torch.zeros(sizes.n_heads)
    if heads != "all":
        mask[list(heads)] = 1.0
    return mask.repeat_interleave(sizes.head_dim)
