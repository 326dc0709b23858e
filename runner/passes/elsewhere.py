"""A model that is read elsewhere: by an engine that has the same one, and never in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from subvene.runner.data.span import Text
from subvene.runner.models.anatomy import Anatomy


@dataclass(frozen=True)
class SpanMeans:
    """What a site holds over a span of each text.

    Attributes:
        vectors: layer → the mean activation of each text, float32 [texts, width].
        norms: layer → mean ‖h‖ of each text, float64 [texts].
    """

    vectors: dict[int, torch.Tensor]
    norms: dict[int, torch.Tensor]


class Read(Protocol):
    """Reads spans of texts, as the untouched model has them."""

    def __call__(self, site: str, layers: Sequence[int], texts: Sequence[Text], /) -> SpanMeans:
        """The means over each text's span, which holds a token at least."""


@dataclass(frozen=True)
class ReadElsewhere(Anatomy):
    """The anatomy of a model whose activations something else than this process reads.

    Attributes:
        read: what reads them.
    """

    read: Read

    def weighted(
        self, site: str, layers: Sequence[int], texts: Sequence[Text], weights: Sequence[float]
    ) -> tuple[dict[int, torch.Tensor], dict[int, float]]:
        """By layer Σ_i w_i · (mean over span i), float32 [width], and Σ_i |w_i| · mean ‖h‖."""
        means, w = self.read(site, layers, texts), torch.tensor(weights, dtype=torch.float64)
        vectors = {layer: (w @ means.vectors[layer].double()).float() for layer in layers}
        return vectors, {layer: float(w.abs() @ means.norms[layer]) for layer in layers}

    def pooled(
        self, site: str, layers: Sequence[int], texts: Sequence[Text], how: Literal["mean", "max"]
    ) -> dict[int, torch.Tensor]:
        """By layer the mean over each text's span, float32 [texts, width].

        Raises:
            NotImplementedError: another way, which files that name an engine are refused with.
        """
        if how != "mean":
            raise NotImplementedError(f"an engine gives means over tokens, not {how}")
        return self.read(site, layers, texts).vectors
