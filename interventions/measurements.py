"""What gates read of an activation: one number a token, in float32.

A measurement is a class here, under the name of its spec in `subvene.specs.gates`.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import ClassVar

import torch

from subvene.interventions.latents import Latents, read_parts
from subvene.interventions.tensors import TensorError, TensorTable, stored_name
from subvene.specs.gates import MeasuredGate, SaeFeatureGate
from subvene.specs.saes import StoredSae

_TINY = torch.finfo(torch.float32).tiny
BIAS = "bias"
"""The part of a tensor's name under which a probe's intercept is stored."""


class Measurement(torch.nn.Module):
    """A number read of h [..., width].

    Args:
        vector: v, [width]; None for a measurement without one.
        bias: b, [].
    """

    measure: ClassVar[str]
    vector: torch.Tensor
    bias: torch.Tensor

    def __init__(self, vector: torch.Tensor | None = None, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("vector", torch.zeros(0) if vector is None else vector.detach().float())
        self.register_buffer("bias", torch.zeros(()) if bias is None else bias.detach().float())

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """The measurement of `h` [..., width], float32 or wider; [...]."""
        raise NotImplementedError

    def stored(self, key: str, site: str, layer: int) -> dict[str, torch.Tensor]:
        """What an artifact keeps of it: full tensor name → tensor."""
        return {stored_name(key, site, layer): self.vector} if len(self.vector) else {}

    @property
    def is_stored(self) -> bool:
        """Whether it has tensors, which an artifact keeps."""
        return bool(len(self.vector))

    @property
    def told(self) -> dict[str, object]:
        """What beside its tensors tells what is measured."""
        return {"measure": self.measure}

    def _projected(self, h: torch.Tensor) -> torch.Tensor:
        """⟨h, v⟩, elementwise and not as a matrix product, whose rounding depends on the batch's shape."""
        return (h * self.vector.to(h)).sum(-1)


class Projection(Measurement):
    """⟨h, v⟩/‖v‖."""

    measure = "projection"

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self._projected(h) / self.vector.to(h).norm().clamp_min(_TINY)


class Cosine(Measurement):
    """⟨h, v⟩/(‖h‖·‖v‖); 0 for h = 0."""

    measure = "cosine"

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        v = self.vector.to(h)
        return self._projected(h) / (h.norm(dim=-1) * v.norm()).clamp_min(_TINY)


class Cast(Measurement):
    """cos(h, tanh(P·h)) with P = v·vᵀ/‖v‖²; 0 for h = 0 and where ⟨h, v⟩ is 0.

    Lee et al. 2024, "Programming Refusal with Conditional Activation Steering" (arXiv:2409.05907), section
    3.1, and IBM/activation-steering, `leash_layer.py`: both take the tanh of the projection.
    """

    measure = "cast"

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        v = self.vector.to(h)
        projected = torch.tanh((self._projected(h) / v.square().sum().clamp_min(_TINY)).unsqueeze(-1) * v)
        norms = h.norm(dim=-1) * projected.norm(dim=-1)
        return (h * projected).sum(-1) / norms.clamp_min(_TINY)


class Probe(Measurement):
    """σ(⟨w, h⟩ + b)."""

    measure = "probe"

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self._projected(h) + self.bias.to(h))

    def stored(self, key: str, site: str, layer: int) -> dict[str, torch.Tensor]:
        return super().stored(key, site, layer) | {stored_name(key, site, layer, BIAS): self.bias}


class Norm(Measurement):
    """‖h‖."""

    measure = "norm"

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h.norm(dim=-1)


class SaeFeature(Measurement):
    """The activation of a feature of a sparse autoencoder, in SAELens' arithmetic (`latents`).

    Args:
        latents: of the one feature.
    """

    measure = "sae_feature"

    def __init__(self, latents: Latents | None = None) -> None:
        super().__init__()
        self._latents = Latents({}, "standard", "none") if latents is None else latents
        for part, tensor in self._latents.parts.items():
            self.register_buffer(part, tensor.detach().float())

    @property
    def is_stored(self) -> bool:
        return bool(self._latents.parts)

    @property
    def told(self) -> dict[str, object]:
        how = replace(self._latents, parts={})
        return super().told | asdict(how)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        parts = {part: self.get_buffer(part) for part in self._latents.parts}
        return replace(self._latents, parts=parts).activations(h)[..., 0]

    def stored(self, key: str, site: str, layer: int) -> dict[str, torch.Tensor]:
        return {stored_name(key, site, layer, part): self.get_buffer(part) for part in self._latents.parts}


MEASUREMENTS: dict[str, type[Measurement]] = {
    cls.measure: cls for cls in (Projection, Cosine, Cast, Probe, Norm, SaeFeature)
}
"""Every measurement by its name."""


def measurement(spec: MeasuredGate, table: TensorTable, layer: int, width: int) -> Measurement:
    """The measurement that a gate declares, at a layer.

    Raises:
        TensorError: its tensor is missing, has another shape than [width], or is zero.
    """
    if isinstance(spec, SaeFeatureGate):
        return _sae_feature(spec, table, layer, width)
    cls = MEASUREMENTS[spec.measurement]
    if spec.ref is None:
        return cls()
    key = spec.ref.key
    vector = table.get(key, spec.site, layer, shape=(width,), nonzero=True)
    has_bias = cls is Probe and table.find(key, spec.site, layer, BIAS) is not None
    return cls(vector, table.get(key, spec.site, layer, shape=(), part=BIAS) if has_bias else None)


def _sae_feature(spec: SaeFeatureGate, table: TensorTable, layer: int, width: int) -> SaeFeature:
    sae = spec.sae
    if not isinstance(sae, StoredSae):
        raise TensorError("sae: an SAE in SAELens' format is read when the model is loaded, not before")
    parts = read_parts(sae, table, spec.site, layer, width, 1)
    features = (spec.feature,) if sae.architecture == "topk" else ()
    return SaeFeature(Latents(parts, sae.architecture, sae.normalize, sae.k, features))
