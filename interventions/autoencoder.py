"""pyvene's autoencoder intervention with a gradient."""

from __future__ import annotations

from typing import Any

import torch

from subvene.interventions._pyvene import pyvene


class AutoencoderIntervention(pyvene.AutoencoderIntervention):
    """decode(z), z being encode(base) with the latents `interchange_dim` of encode(source).

    pyvene 0.1.8 writes them into the encoder's own output, which autograd needs as it was: its class cannot
    be trained. The name is kept, because it is what `class:` and reloaded settings say.
    """

    def forward(
        self, base: torch.Tensor, source: torch.Tensor, subspaces: Any = None, **kwargs: Any
    ) -> torch.Tensor:
        latent, swapped_in = self.autoencoder.encode(base), self.autoencoder.encode(source)
        index = self.interchange_dim.to(latent.device)
        latent = latent.index_copy(-1, index, swapped_in.index_select(-1, index))
        return self.autoencoder.decode(latent).to(base.dtype)
