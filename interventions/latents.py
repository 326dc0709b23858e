"""The activations of an SAE's latents, in SAELens' arithmetic: tensors in, tensors out.

SAELens 6, `sae_lens/saes/`: `sae.py` (`process_sae_in`, normalizations), `standard_sae.py`, `jumprelu_sae.py`
(Rajamanoharan et al. 2024b, arXiv:2407.14435), `topk_sae.py` (Gao et al. 2024, arXiv:2406.04093),
`gated_sae.py` (Rajamanoharan et al. 2024a, arXiv:2404.16014).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from subvene.interventions.tensors import TensorTable
from subvene.specs.saes import Architecture, Normalization, StoredSae
from subvene.specs.sites import Site

EPS = 1e-5
"""Added to the standard deviation by which `layer_norm` divides, as SAELens has it."""

_OWN = {"standard": (), "jumprelu": ("threshold",), "topk": (), "gated": ("gate_bias", "r_mag")}
ENCODER_PARTS = ("encoder", "bias", "shift", "threshold", "gate_bias", "r_mag")
"""The tensors that tell the activations of latents, by the parts of their names."""


def parts_of(architecture: Architecture) -> tuple[str, ...]:
    """Which of `ENCODER_PARTS` an architecture has."""
    return ("encoder", "bias", "shift", *_OWN[architecture])


def read_parts(
    sae: StoredSae, table: TensorTable, site: Site, layer: int, width: int, count: int
) -> dict[str, torch.Tensor]:
    """The tensors that tell the activations of `count` features, float32, by `ENCODER_PARTS`.

    Raises:
        TensorError: one is missing or has another shape.
    """
    rows = sae.latents or count
    shapes = {"encoder": (rows, width), "shift": (width,)}
    return {
        part: table.get(sae.key, site, layer, part=part, shape=shapes.get(part, (rows,)))
        for part in parts_of(sae.architecture)
    }


@dataclass(frozen=True)
class Latents:
    """How the activations of some latents follow from the activation that the SAE reads.

    Attributes:
        parts: by `ENCODER_PARTS`; rows are the features, of `topk` all latents.
        architecture: what makes a latent active.
        normalize: what is done to the activation first.
        k: of `topk`.
        features: of `topk`, the latents that are asked for.
    """

    parts: Mapping[str, torch.Tensor]
    architecture: Architecture
    normalize: Normalization
    k: int | None = None
    features: tuple[int, ...] = ()

    def activations(self, h: torch.Tensor) -> torch.Tensor:
        """The features' activations [..., features] at `h` [..., width], float32 or wider."""
        x = normalized(h, self.normalize) - self._part("shift", h)
        if self.architecture == "topk":
            return self._highest(x)
        # Row by row and not as a matrix product, whose rounding depends on the batch's shape: a feature near
        # its threshold would be active in scoring and not in generation.
        read = torch.stack([(x * row).sum(-1) for row in self._part("encoder", h)], -1)
        if self.architecture == "gated":
            magnitude = read * self._part("r_mag", h).exp() + self._part("bias", h)
            return torch.where(read + self._part("gate_bias", h) > 0, magnitude.relu(), 0)
        before = read + self._part("bias", h)
        if self.architecture == "jumprelu":
            return torch.where(before > self._part("threshold", h), before.relu(), 0)
        return before.relu()

    def _highest(self, x: torch.Tensor) -> torch.Tensor:
        before = x @ self._part("encoder", x).T + self._part("bias", x)
        values, indices = torch.topk(before, int(self.k or 0), dim=-1)
        active = torch.zeros_like(before).scatter(-1, indices, values.relu())
        return active[..., list(self.features)]

    def _part(self, name: str, like: torch.Tensor) -> torch.Tensor:
        return self.parts[name].to(like)


def normalized(h: torch.Tensor, how: Normalization) -> torch.Tensor:
    """What the SAE is given of the activation `h` [..., width]."""
    if how == "layer_norm":
        centred = h - h.mean(-1, keepdim=True)
        return centred / (centred.std(-1, keepdim=True) + EPS)
    return h / output_scale(h, how) if how == "constant_norm_rescale" else h


def output_scale(h: torch.Tensor, how: Normalization) -> torch.Tensor | float:
    """What a decoded difference is multiplied by, [..., 1]: what normalizing had divided by."""
    if how == "layer_norm":
        return h.std(-1, keepdim=True)
    return h.norm(dim=-1, keepdim=True) / math.sqrt(h.shape[-1]) if how == "constant_norm_rescale" else 1.0
