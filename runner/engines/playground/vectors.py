"""The vectors on which the playground projects tokens: those that its artifacts steer by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.monitor.projection import ByVector
from subvene.runner.monitor.stored_vectors import stored_vectors, used_vectors


@dataclass(frozen=True)
class Named:
    """A vector at `block_output`.

    Attributes:
        artifact: whose it is.
        key: its key there.
        layer: its layer.
        vector: [width].
    """

    artifact: str
    key: str
    layer: int
    vector: torch.Tensor

    @property
    def label(self) -> str:
        """What no other artifact's vector is called."""
        return f"{self.artifact}/{self.key}"


def vectors_of(artifact: str, m: IntervenedModel) -> list[Named]:
    """The vectors that an artifact's interventions use; where they use none, all that it holds."""
    found = used_vectors(m) or stored_vectors(m)
    return [
        Named(artifact, key, layer, v) for key, by_layer in found.items() for layer, v in by_layer.items()
    ]


def by_key(vectors: Sequence[Named]) -> ByVector:
    """The vectors as projections take them."""
    found: ByVector = {}
    for one in vectors:
        found.setdefault(one.label, {})[one.layer] = one.vector
    return found
