"""A Δ that is the same vector at every token: made once, and again when what it is made of changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True, eq=False)
class Constant:
    """A Δ that is one vector, and what it was made of.

    Attributes:
        vector: Δ, [width].
        buffers: what it was made of, each with its version then.
    """

    vector: torch.Tensor
    buffers: tuple[tuple[torch.Tensor, int], ...]

    @classmethod
    def of(cls, vector: torch.Tensor | None, buffers: Sequence[torch.Tensor]) -> Self | None:
        """Δ made of these buffers, as they are now; None where there is none, or it is being trained."""
        if vector is None or vector.requires_grad:
            return None
        versions = tuple((buffer, _version(buffer)) for buffer in buffers)
        return cls(vector, versions)

    def added(self, base: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """`base` + `scale`·Δ in its own dtype, computed in the wider of the two, without a widened copy."""
        if base.dtype == scale.dtype or (base.requires_grad and torch.is_grad_enabled()):
            return torch.addcmul(base, scale, self.vector).to(base.dtype)
        return torch.addcmul(base, scale, self.vector, out=torch.empty_like(base))

    def is_of(self, buffers: Sequence[torch.Tensor]) -> bool:
        """Whether it is made of these, and none of them has changed."""
        return all(
            then is now and version == _version(now) >= 0
            for (then, version), now in zip(self.buffers, buffers, strict=True)
        )


def _version(tensor: torch.Tensor) -> int:
    # Tensors made in inference mode do not say when they change.
    return -1 if tensor.is_inference() else tensor._version
