"""The data plane: what is done at one site, as dense products over buffers that stay where they are.

Shapes are fixed and nothing branches on a value, so that it can be compiled and captured in graphs. Which
artifact has which column, at which strength and at which token, is in the buffers' contents alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from subvene.interventions import Columns
from subvene.interventions.columns import Form

_FORMS: tuple[Form, ...] = ("constant", "linear", "bound", "gate")


class DenseSite(nn.Module):
    """h ← h + Σ_k S[t, group_k]·f_k(⟨a_k, h⟩)·b_k, stage after stage, in float32.

    Args:
        width: of the activation.
        columns: how many there are; unused ones are zero.
        depth: how many stages.
    """

    a: torch.Tensor
    b: torch.Tensor
    forms: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    bias: torch.Tensor
    group: torch.Tensor

    def __init__(self, width: int, columns: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.register_buffer("a", torch.zeros(columns, width), persistent=False)
        self.register_buffer("b", torch.zeros(columns, width), persistent=False)
        # Which column has which form, 0 or 1; of an unused column none.
        self.register_buffer("forms", torch.zeros(len(_FORMS), columns), persistent=False)
        self.register_buffer("low", torch.full((columns,), -math.inf), persistent=False)
        self.register_buffer("high", torch.full((columns,), math.inf), persistent=False)
        self.register_buffer("bias", torch.zeros(columns), persistent=False)
        self.register_buffer("group", torch.zeros(columns, dtype=torch.long), persistent=False)

    @torch.no_grad()
    def fill(self, at: Sequence[int], group: int, columns: Sequence[Columns]) -> None:
        """Put an intervention's columns into the places `at`."""
        places = iter(at)
        for one in columns:
            for k, place in enumerate([next(places) for _ in range(len(one.b))]):
                self.a[place], self.b[place] = one.a[k].float(), one.b[k].float()
                self.low[place], self.high[place], self.bias[place] = one.low[k], one.high[k], one.bias[k]
                self.forms[:, place] = torch.tensor([float(form == one.form) for form in _FORMS])
                self.group[place] = group

    @torch.no_grad()
    def clear(self, at: Sequence[int]) -> None:
        """Make the columns `at` unused."""
        index = torch.tensor(at, dtype=torch.long)
        for buffer in (self.a, self.b, self.bias):
            buffer[index] = 0
        self.forms[:, index] = 0
        self.low[index], self.high[index] = -math.inf, math.inf

    def forward(self, h: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Edit `h` [tokens, width]; `scale` [stages, tokens, groups] is the strength, 0 at unedited tokens.

        Returns:
            The activation in its own dtype; tokens at which every strength is 0 are bit for bit as they were.
        """
        edited = h.float()
        chosen = scale[: self.depth].index_select(2, self.group)
        for stage in range(self.depth):
            edited = edited + (chosen[stage] * self._factors(edited @ self.a.T)) @ self.b
        acts = (chosen != 0).any(0).any(-1, keepdim=True)
        # Not left to h + 0·Δ(h): where Δ overflows, 0·inf would put NaN into a token that is not edited.
        return torch.where(acts, edited.to(h.dtype), h)

    def _factors(self, p: torch.Tensor) -> torch.Tensor:
        constant, linear, bound, gate = self.forms
        clamped = torch.minimum(torch.maximum(p, self.low), self.high) - p
        return constant + linear * p + bound * clamped + gate * torch.sigmoid(-(p + self.bias))


class StrengthTables:
    """Who is edited where, by request: what becomes S for the tokens of a step.

    Args:
        slots: how many requests there may be at once.
        intervals: how many runs of positions a request may have (`admission.MOST_INTERVALS`).
        groups: interventions of the catalogue.
        depth: stages.
    """

    def __init__(self, slots: int, intervals: int, groups: int, depth: int) -> None:
        # The last slot is nobody's: padding, and requests without edits.
        self.nobody, self.groups, self.depth = slots, groups, depth
        shape = (slots + 1, intervals)
        self.first, self.end, self.cell = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        self.strength = torch.zeros(shape)

    def put(self, slot: int, edits: Sequence[tuple[int, int, float, Sequence[tuple[int, int]]]]) -> None:
        """Give a slot its edits, each (group, stage, strength, positions)."""
        self.clear(slot)
        rows = [
            (first, end, stage * self.groups + group, strength)
            for group, stage, strength, positions in edits
            for first, end in positions
        ]
        for i, (first, end, cell, strength) in enumerate(rows):
            self.first[slot, i], self.end[slot, i], self.cell[slot, i] = first, end, cell
            self.strength[slot, i] = strength

    def clear(self, slot: int) -> None:
        """Leave whoever has this slot unedited."""
        self.strength[slot] = 0

    def scale(self, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """S [stages, tokens, groups] for tokens [tokens] of these slots at these absolute positions."""
        at = positions.unsqueeze(1)
        here = (at >= self.first[slots]) & (at < self.end[slots])
        scale = torch.zeros(len(slots), self.depth * self.groups)
        scale.scatter_add_(1, self.cell[slots], self.strength[slots] * here)
        return scale.view(-1, self.depth, self.groups).transpose(0, 1)
