"""Noise, as causal tracing corrupts a subject's embeddings (Meng et al. 2022, arXiv:2202.05262).

pyvene's NoiseIntervention holds noise for exactly 4 tokens; here every position has its own, drawn when it is
met.
"""

from __future__ import annotations

from typing import Any, Self

import torch

from subvene.interventions.base import ActivationIntervention
from subvene.interventions.positions import Tokens
from subvene.interventions.tensors import Part, Sizes, TensorTable
from subvene.specs import NoiseSpec

_LARGEST = 2**63


class NoiseIntervention(ActivationIntervention):
    """h ← h + s·ε, ε ~ N(0, 1) drawn from the row's seed and the token's position.

    Args:
        **kwargs: see `ActivationIntervention`; `options["seeds"]` are the seeds, one, or one per row.
    """

    kind = "noise"
    linear_in_strength = True
    acts_alone = True
    needs_tokens = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._drawn: dict[tuple[int, int], torch.Tensor] = {}

    @classmethod
    def build(cls, spec: NoiseSpec, table: TensorTable, sizes: Sizes) -> list[tuple[str, int | None, Self]]:
        seeds = [spec.seed] if isinstance(spec.seed, int) else list(spec.seed)
        edit = cls(strength=torch.tensor(spec.strength), positions=spec.positions, options={"seeds": seeds})
        if spec.component is None:
            return [(spec.place, spec.layer, edit)]
        part: Part = sizes.part(spec.component, spec.layer, None)
        return [(part.site, None, edit)]

    def stored(self, key: str, site: str, layer: int | None) -> dict[str, torch.Tensor]:
        return {}

    def edit(
        self, h: torch.Tensor, scale: torch.Tensor, *, tokens: Tokens | None = None, **context: Any
    ) -> torch.Tensor:
        if tokens is None:
            raise ValueError("noise is drawn by position, and the tokens' positions were not given")
        return torch.addcmul(h, scale, self._noise(tokens.index, h))

    def _noise(self, index: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """ε for tokens at `index` [batch, tokens], [batch, tokens, width]."""
        rows, width = len(h), h.shape[-1]
        seeds = self.options.get("seeds", [0])
        if rows % len(seeds):
            raise ValueError(f"seed has {len(seeds)} values, one per row, and the batch has {rows} rows")
        count = int(index.max()) + 1
        repeat = rows // len(seeds) if len(seeds) > 1 else rows
        noise = torch.stack([self._of(seed, count, width) for seed in seeds]).to(h.device, h.dtype)
        index = index.to(h.device).clamp_min(0)
        if len(seeds) == 1:
            return noise[0][index]
        noise = noise.repeat_interleave(repeat, 0)
        return noise.gather(1, index.unsqueeze(-1).expand(-1, -1, width))

    def _of(self, seed: int, count: int, width: int) -> torch.Tensor:
        """The noise of the first positions of a row, [count, width]: each position is drawn by itself."""
        known = self._drawn.get((seed, width), torch.empty(0, width))
        if len(known) < count:
            generator = torch.Generator()
            more = []
            for position in range(len(known), count):
                generator.manual_seed((seed * 1_000_003 + position) % _LARGEST)
                more.append(torch.randn(width, generator=generator))
            known = self._drawn[seed, width] = torch.cat([known, torch.stack(more)])
        return known[:count]
