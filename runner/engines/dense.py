"""The data plane: what is done at one site, as dense products over buffers that stay where they are.

Shapes are fixed and nothing branches on a value, so that it can be compiled and captured in graphs. Which
artifact has which column, at which strength and at which token, is in the buffers' contents alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from subvene.interventions import Columns
from subvene.interventions.columns import Form

_FORMS: tuple[Form, ...] = ("constant", "linear", "bound", "gate")

Reduce = Callable[[torch.Tensor], torch.Tensor]
Edits = Sequence[tuple[int, int, float, Sequence[tuple[int, int]]]]
"""Each (group, stage, strength, positions)."""


def cells(depth: int, groups: int) -> int:
    """Columns of a table of strengths: one that is always 0, and one for each stage and group."""
    return 1 + depth * groups


class DenseSite(nn.Module):
    """h ← h + Σ_k S[t, cell_k]·f_k(⟨a_k, h⟩)·b_k, stage after stage, in float32.

    Args:
        width: of the activation; of this rank's part of it, where it is split.
        columns: how many there are; unused ones are zero.
        depth: how many stages there are here.
        groups: how many interventions there may be.
        reads: whether a column may depend on the activation.
        part: which part of the activation is here.
        reduce: adds up over the parts what each has found.
    """

    a: torch.Tensor
    b: torch.Tensor
    forms: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    bias: torch.Tensor
    cell: torch.Tensor

    def __init__(
        self,
        width: int,
        columns: int,
        depth: int,
        groups: int,
        *,
        reads: bool = True,
        part: slice = slice(None),
        reduce: Reduce | None = None,
    ) -> None:
        super().__init__()
        self.depth, self.groups, self.reads = depth, groups, reads
        self.part, self.reduce = part, reduce
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float32)  # noqa: E731 - not the model's dtype
        self.register_buffer("a", zeros(columns, width), persistent=False)
        self.register_buffer("b", zeros(columns, width), persistent=False)
        # Which column has which form, 0 or 1; of an unused column none.
        self.register_buffer("forms", zeros(len(_FORMS), columns), persistent=False)
        self.register_buffer("low", zeros(columns) - math.inf, persistent=False)
        self.register_buffer("high", zeros(columns) + math.inf, persistent=False)
        self.register_buffer("bias", zeros(columns), persistent=False)
        # Stage after stage, so that one gather gives the strengths of them all.
        unused = torch.zeros(depth, columns, dtype=torch.long)
        self.register_buffer("cell", unused, persistent=False)

    @torch.no_grad()
    def fill(self, at: Sequence[int], group: int, columns: Sequence[Columns]) -> None:
        """Put an intervention's columns into the places `at`."""
        places = iter(at)
        stages = 1 + torch.arange(self.depth, device=self.cell.device) * self.groups
        for one in columns:
            for k, place in enumerate([next(places) for _ in range(len(one.b))]):
                self.a[place], self.b[place] = one.a[k, self.part].float(), one.b[k, self.part].float()
                self.low[place], self.high[place], self.bias[place] = one.low[k], one.high[k], one.bias[k]
                forms = torch.tensor([float(form == one.form) for form in _FORMS], dtype=torch.float32)
                self.forms[:, place] = forms.to(self.forms.device)
                self.cell[:, place] = stages + group

    @torch.no_grad()
    def clear(self, at: Sequence[int]) -> None:
        """Make the columns `at` unused."""
        index = torch.tensor(at, dtype=torch.long, device=self.cell.device)
        for buffer in (self.a, self.b, self.bias):
            buffer[index] = 0
        self.forms[:, index] = 0
        self.low[index], self.high[index] = -math.inf, math.inf
        self.cell[:, index] = 0

    def forward(self, h: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Edit `h` [tokens, width]; `scale` [tokens, cells] is the strength, 0 at unedited tokens.

        Returns:
            The activation in its own dtype; tokens at which every strength is 0 are bit for bit as they were.
        """
        delta, acts = self.delta(h, scale)
        # Not left to h + 0·Δ(h): where Δ overflows, 0·inf would put NaN into a token that is not edited.
        return torch.where(acts, (h.float() + delta).to(h.dtype), h)

    def delta(
        self, h: torch.Tensor, scale: torch.Tensor, stages: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is added to `h`, [tokens, width] in float32, and at which tokens anything is, [tokens, 1].

        Args:
            h: the activation.
            scale: [tokens, cells].
            stages: how many of them anything is in; None: all.
        """
        depth = self.depth if stages is None else min(stages, self.depth)
        chosen = scale.index_select(1, self.cell[:depth].flatten())
        acts = chosen.any(-1, keepdim=True)
        chosen = chosen.view(len(h), depth, -1)
        if not self.reads:  # what is constant commutes
            return (chosen.sum(1) if depth > 1 else chosen[:, 0]) @ self.b, acts
        wide = h.float()
        total = (chosen[:, 0] * self._factors(wide)) @ self.b
        for stage in range(1, depth):
            total = total + (chosen[:, stage] * self._factors(wide + total)) @ self.b
        return total, acts

    def _factors(self, h: torch.Tensor) -> torch.Tensor:
        p = h @ self.a.T
        if self.reduce is not None:
            p = self.reduce(p)
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
        device: where S is needed.
    """

    def __init__(
        self, slots: int, intervals: int, groups: int, depth: int, device: torch.device | None = None
    ) -> None:
        # The last slot is nobody's: padding, and requests without edits.
        self.nobody, self.groups, self.depth = slots, groups, depth
        shape = (slots + 1, intervals)
        self.first, self.end, self.cell = (
            torch.zeros(shape, dtype=torch.long, device=device) for _ in range(3)
        )
        self.strength = torch.zeros(shape, dtype=torch.float32, device=device)
        self._used = [0] * (slots + 1)

    def put(self, slot: int, edits: Edits) -> None:
        """Give a slot its edits."""
        self.clear(slot)
        rows = [
            (first, end, 1 + stage * self.groups + group, strength)
            for group, stage, strength, positions in edits
            for first, end in positions
        ]
        if rows:
            first, end, cell, strength = zip(*rows, strict=True)
            for table, values in ((self.first, first), (self.end, end), (self.cell, cell)):
                table[slot, : len(rows)] = torch.tensor(values, dtype=torch.long).to(table.device)
            strengths = torch.tensor(strength, dtype=torch.float32)
            self.strength[slot, : len(rows)] = strengths.to(self.strength.device)
        self._used[slot] = len(rows)

    def clear(self, slot: int) -> None:
        """Leave whoever has this slot unedited."""
        self.strength[slot] = 0
        self._used[slot] = 0

    def width(self, slots: Sequence[int]) -> int:
        """The most runs of positions that any of these has."""
        return max((self._used[slot] for slot in slots), default=0)

    def scale(
        self,
        slots: torch.Tensor,
        positions: torch.Tensor,
        *,
        width: int | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """S [tokens, cells] for tokens [tokens] of these slots at these absolute positions.

        Args:
            slots: of each token.
            positions: of each token.
            width: the most runs of positions of any of the slots, if it is known.
            out: where it is written, zero before.
        """
        at, first, end, cell, strength = (
            positions.unsqueeze(1),
            *(table[slots, :width] for table in (self.first, self.end, self.cell, self.strength)),
        )
        if out is None:
            out = torch.zeros(len(slots), cells(self.depth, self.groups), device=strength.device)
        return out.scatter_add_(1, cell, strength * ((at >= first) & (at < end)))
