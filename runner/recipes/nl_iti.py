"""NL-ITI's probe (Hoscilowicz et al. 2024, arXiv:2403.18680): a small perceptron for every head.

As the published code has it (github.com/Samsung/NL-ITI): a linear map to 16 units, batch normalisation,
ReLU, a linear map to one and a sigmoid; binary cross-entropy; Adam with rate 5e-4 and L2 1e-4; batches of 32,
the last one of an epoch dropped where it is not full; 10 epochs, of which the first one that is best on the
held-out answers counts. That the held-out answers choose the epoch makes these accuracies a little too high,
for all heads alike.

It differs in one thing: every head sees the batches in the same order, where there each sees another.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

HIDDEN, EPOCHS, BATCH = 16, 10, 32
RATE, DECAY = 5e-4, 1e-4


def nl_iti_right(
    x: NDArray[np.float64],
    y: NDArray[np.int64],
    held_out: NDArray[np.float64],
    truth: NDArray[np.int64],
    seed: int,
) -> NDArray[np.float64]:
    """How many held-out answers each head's probe is right about, [heads].

    Args:
        x: what it learns from, [texts, heads, head_dim].
        y: its labels, 0 or 1.
        held_out: [texts, heads, head_dim].
        truth: their labels.
        seed: of first weights and batches.
    """
    drawn = torch.Generator().manual_seed(seed)
    train, test = (torch.from_numpy(some).float().transpose(0, 1) for some in (x, held_out))
    labels, expected = torch.from_numpy(y).float(), torch.from_numpy(truth)
    probe = _Probes(train.shape[0], train.shape[2], drawn)
    optimizer = torch.optim.Adam(probe.parameters(), lr=RATE, weight_decay=DECAY)
    best = torch.full((train.shape[0],), -1)
    for _ in range(EPOCHS):
        probe.train()
        # A set smaller than a batch is one, where the published code would learn nothing of it.
        size = min(BATCH, len(labels))
        for batch in torch.randperm(len(labels), generator=drawn).split(size):
            if len(batch) < size:
                continue
            optimizer.zero_grad()
            logits = probe(train[:, batch])
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, labels[batch].expand_as(logits), reduction="none"
            )
            # The sum of each head's own mean: no head's gradient depends on another.
            loss.mean(1).sum().backward()
            optimizer.step()
        probe.eval()
        with torch.no_grad():
            said = probe(test) > 0
        best = torch.maximum(best, (said == expected.bool()).sum(1))
    return best.double().numpy()


class _Probes(torch.nn.Module):
    """One perceptron a head, side by side; [heads, texts, head_dim] → logits [heads, texts]."""

    def __init__(self, heads: int, width: int, drawn: torch.Generator) -> None:
        super().__init__()

        def uniform(*shape: int, fan_in: int) -> torch.nn.Parameter:
            # torch.nn.Linear's own: U(-1/√fan_in, 1/√fan_in).
            bound = 1 / math.sqrt(fan_in)
            return torch.nn.Parameter((2 * torch.rand(heads, *shape, generator=drawn) - 1) * bound)

        self.first = uniform(width, HIDDEN, fan_in=width)
        self.first_bias = uniform(1, HIDDEN, fan_in=width)
        self.second = uniform(HIDDEN, 1, fan_in=HIDDEN)
        self.second_bias = uniform(1, 1, fan_in=HIDDEN)
        # A unit of a head is a channel: statistics over the texts of a batch, head by head.
        self.norm = torch.nn.BatchNorm1d(heads * HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.baddbmm(self.first_bias, x, self.first)
        heads, texts, units = hidden.shape
        flat = hidden.permute(1, 0, 2).reshape(texts, heads * units)
        normal = self.norm(flat).view(texts, heads, units).permute(1, 0, 2)
        return torch.baddbmm(self.second_bias, normal.relu(), self.second).squeeze(2)
