"""Gates: edits that add fixed vectors, each as far as one reading of the activation says."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gates:
    """Δ(h) = Σ_k g_k(⟨w_k, h⟩)·u_k, every g_k strictly monotonic and the u_k linearly independent.

    Float64 on the CPU.

    Attributes:
        readers: w_k, [gates, width].
        writers: u_k, [gates, width].
        strength: what stands in the place of the strength, in words, such as `α·(1 − p)`.
    """

    readers: torch.Tensor
    writers: torch.Tensor
    strength: str
