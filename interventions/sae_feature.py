"""Features of a sparse autoencoder, changed in what the model computes, the reconstruction error kept.

What SAELens computes with its error term: decode(a') + (h − decode(a)), a' the changed activations. Both
decodings have the same constants, so that what is added is (a' − a)·W_dec, and no other latent is needed.
Clamping: Templeton et al. 2024, "Scaling Monosemanticity", section "Influence on Behavior".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch

from subvene.interventions.affine import Affine
from subvene.interventions.base import ActivationIntervention
from subvene.interventions.latents import ENCODER_PARTS, Latents, output_scale, read_parts
from subvene.interventions.tensors import Sizes, TensorError, TensorTable, stored_name
from subvene.specs import SaeFeatureSpec
from subvene.specs.saes import Architecture, Normalization, StoredSae

Do = Literal["add", "clamp", "scale", "ablate"]


class SaeFeatureIntervention(ActivationIntervention):
    """h ← h + s·c·Σ_i (a'_i − a_i)·d_i; c is what the SAE's normalization divides by, 1 without one.

    Args:
        decoder: the rows d_i of W_dec, [features, width].
        values: of each feature, [features].
        encoder: by `ENCODER_PARTS`, what tells the activations; not needed to add.
        do: a' = a + value (`add`), value (`clamp`), value·a (`scale`), 0 (`ablate`).
        architecture: of the SAE.
        normalize: likewise.
        k: of `topk`.
        features: of `topk`, the rows of the encoder that are changed.
        **kwargs: see `ActivationIntervention`; `strength` is s.
    """

    kind = "sae_feature"
    buffer_names = ("decoder", "values", *ENCODER_PARTS)
    linear_in_strength = True
    acts_alone = True

    def __init__(
        self,
        decoder: torch.Tensor | None = None,
        values: Sequence[float] = (),
        encoder: dict[str, torch.Tensor] | None = None,
        *,
        do: Do = "add",
        architecture: Architecture = "standard",
        normalize: Normalization = "none",
        k: int | None = None,
        features: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        options = {"do": do, "architecture": architecture, "normalize": normalize, "k": k}
        super().__init__(options=options | {"features": list(features)}, **kwargs)
        given = {"decoder": decoder, "values": torch.tensor(list(values)), **(encoder or {})}
        for name in self.buffer_names:
            tensor = given.get(name)
            self.register_buffer(name, torch.zeros(0) if tensor is None else tensor.detach().float())

    @classmethod
    def build(
        cls, spec: SaeFeatureSpec, table: TensorTable, sizes: Sizes
    ) -> list[tuple[str, int | None, Self]]:
        sae = spec.sae
        if not isinstance(sae, StoredSae):
            raise TensorError("sae: an SAE in SAELens' format is read when the model is loaded, not before")
        layers = table.one_or_all(spec.layer, sae.key, spec.site, "decoder")
        return [(spec.site, layer, cls._at(spec, sae, layer, table, sizes)) for layer in layers]

    @classmethod
    def _at(cls, spec: SaeFeatureSpec, sae: StoredSae, layer: int, table: TensorTable, sizes: Sizes) -> Self:
        width, count = sizes.site_width(spec.site, layer), len(spec.features)
        encoder = {} if spec.do == "add" else read_parts(sae, table, spec.site, layer, width, count)
        return cls(
            table.get(sae.key, spec.site, layer, part="decoder", shape=(count, width)),
            spec.values,
            encoder,
            do=spec.do,
            architecture=sae.architecture,
            normalize=sae.normalize,
            k=sae.k,
            features=spec.features if sae.architecture == "topk" else (),
            strength=torch.tensor(spec.strength),
            positions=spec.positions,
        )

    def stored(self, key: str, site: str, layer: int | None) -> dict[str, torch.Tensor]:
        return {
            stored_name(key, site, layer, name): tensor
            for name in ("decoder", *ENCODER_PARTS)
            if (tensor := getattr(self, name)).numel()
        }

    def delta(self, h: torch.Tensor) -> torch.Tensor:
        change, scale = self._change(h), output_scale(h, self.options["normalize"])
        return change @ self.decoder.to(h.dtype) * scale

    def _change(self, h: torch.Tensor) -> torch.Tensor:
        """What the activations are changed by, [..., features]."""
        do, values = self.options["do"], self.values.to(h.dtype)
        if do == "add":
            return values
        a = self.latents.activations(h)
        return {"clamp": values - a, "scale": (values - 1) * a, "ablate": -a}[do]

    @property
    def latents(self) -> Latents:
        """What tells the features' activations; of nothing, where they are added to."""
        return Latents(
            {name: tensor for name in ENCODER_PARTS if (tensor := getattr(self, name)).numel()},
            self.options["architecture"],
            self.options["normalize"],
            self.options["k"],
            tuple(self.options["features"]),
        )

    @property
    def _is_constant(self) -> bool:
        return bool(self.options["do"] == "add" and self.options["normalize"] == "none")

    def constant_delta(self) -> torch.Tensor | None:
        return self.values @ self.decoder if self._is_constant else None

    def affine(self) -> Affine | None:
        if not self._is_constant:
            return None
        return Affine.constant(self.values.double() @ self.decoder.double())

    @property
    def depends_on_activation(self) -> bool:
        return not self._is_constant

    @property
    def instead(self) -> str | None:
        return None if self._is_constant else "`do: add` of an SAE without normalization, or `steering`"

    @property
    def expects_change(self) -> bool:
        # Where no feature is active, there is nothing to scale or to take away.
        moves = bool((self.values != 0).any()) and self.options["do"] in ("add", "clamp")
        return moves and bool(self.decoder.any())
