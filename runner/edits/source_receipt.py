"""The source side of a receipt: what was read of another run, and how far it is from the base.

Equal activations are those that differ by no more than rounding: the same text in a batch of another width is
summed in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from pydantic import JsonValue

from subvene.interventions.positions import plain_positions
from subvene.specs import Positions

# ‖source − base‖/‖base‖ that rounding alone makes.
_ROUNDING = 1e-5


class SourceRecord(TypedDict):
    """A `SourceReceipt` as it is written, as far as it is told in words."""

    name: str
    place: str
    rows: int
    tokens: int
    first: int | None
    last: int | None
    mean_distance: float
    rows_fed: int
    rows_equal: int


@dataclass(frozen=True)
class SourceReceipt:
    """What one intervention read of a source's run, and put into the base.

    Attributes:
        name: of the source.
        place: where it was read, as `site[layer]`.
        positions: the rule for the source's tokens.
        rows: rows that were read.
        tokens: tokens that were read, of all rows.
        first: smallest 0-based position that was read in any row; None if none was.
        last: largest such position.
        mean_distance: mean of ‖source − base‖/‖base‖ over the tokens of the base that it was put into.
        rows_fed: rows of the base with such a token.
        rows_equal: those of them in which source and base are equal, up to rounding, at every such token.
    """

    name: str
    place: str
    positions: Positions
    rows: int
    tokens: int
    first: int | None
    last: int | None
    mean_distance: float
    rows_fed: int
    rows_equal: int

    def problem(self) -> str | None:
        """Why nothing of the source reached the run; None if something did."""
        if not self.tokens:
            return f"the source {self.name!r} was never read"
        if self.rows_fed and self.rows_equal == self.rows_fed:
            return (
                f"the source {self.name!r} at {self.place} is equal to the base in each of the "
                f"{self.rows_fed} rows, so that nothing was put into it that was not there: the "
                "texts are the same up to the tokens that are read, or the same at every row"
            )
        return None

    def plain(self) -> dict[str, JsonValue]:
        """Plain values for JSON."""
        return {**vars(self), "positions": plain_positions(self.positions)}


def joined(receipts: Sequence[SourceReceipt | None]) -> SourceReceipt | None:
    """The receipts of passes with rows of their own as one."""
    read = [receipt for receipt in receipts if receipt is not None]
    if not read:
        return None
    weights = [receipt.rows_fed for receipt in read]
    places = [p for receipt in read for p in (receipt.first, receipt.last) if p is not None]
    distance = sum(r.mean_distance * w for r, w in zip(read, weights, strict=True)) / max(sum(weights), 1)
    return replace(
        read[0],
        rows=sum(receipt.rows for receipt in read),
        tokens=sum(receipt.tokens for receipt in read),
        first=min(places, default=None),
        last=max(places, default=None),
        mean_distance=distance,
        rows_fed=sum(weights),
        rows_equal=sum(receipt.rows_equal for receipt in read),
    )


def distances(norms: torch.Tensor, mask: torch.Tensor, dtype: torch.dtype | None) -> tuple[float, int, int]:
    """Mean ‖source − base‖/‖base‖, rows with a token, and rows whose tokens are all equal up to rounding.

    Args:
        norms: ‖base‖ and ‖source − base‖ by slot, [2, rows, slots].
        mask: Bool[rows, slots], the tokens that the source was put into.
        dtype: of the activations.
    """
    mask = mask.to(norms.device)
    relative = norms[1] / norms[0].clamp_min(1e-12)
    half = dtype is not None and torch.finfo(dtype).bits < 32
    bound = 2 * torch.finfo(dtype).eps if half and dtype is not None else _ROUNDING
    fed = mask.any(1)
    differs = ((relative > bound) & mask).any(1)
    mean = float(relative[mask].cpu().double().mean()) if bool(fed.any()) else 0.0
    return mean, int(fed.sum()), int((fed & ~differs).sum())
