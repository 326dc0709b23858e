"""What gates decided in a run: how many rows and tokens they were asked for, and at how many they opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict


class NodeRecord(TypedDict):
    """A `NodeReceipt` as it is written."""

    place: str
    must_open: bool
    rows: int
    tokens: int


class GateRecord(TypedDict):
    """A `GateReceipt` as it is written."""

    rows_asked: int
    tokens_asked: int
    rows_opened: int
    tokens_opened: int
    gates: list[NodeRecord]


@dataclass(frozen=True)
class NodeReceipt:
    """One gate of those that an intervention's is made of.

    Attributes:
        place: where it stands in the spec, `when.any[0]`.
        must_open: whether a run in which it never opens has failed.
        rows: rows with a token, among those that were asked for, at which it was open.
        tokens: such tokens.
    """

    place: str
    must_open: bool
    rows: int
    tokens: int


@dataclass(frozen=True)
class GateReceipt:
    """What the gate of one intervention decided in one run.

    Attributes:
        rows_asked: rows with a token that the intervention's positions and schedule select, at a strength.
        tokens_asked: such tokens.
        rows_opened: rows in which it opened at one of them.
        tokens_opened: tokens at which it was open, wholly or by degrees.
        gates: the gate and all that it is made of, the outer ones first; empty of a schedule alone.
    """

    rows_asked: int
    tokens_asked: int
    rows_opened: int
    tokens_opened: int
    gates: tuple[NodeReceipt, ...]

    def problem(self) -> str | None:
        """Which gate that must open has not; None if there is none."""
        for node in self.gates:
            if node.must_open and not node.tokens:
                return (
                    f"its gate `{node.place}` must open, and did at none of {self.tokens_asked} tokens in "
                    f"{self.rows_asked} rows"
                )
        return None


def gates_joined(receipts: Sequence[GateReceipt | None], *, same_rows: bool) -> GateReceipt | None:
    """The receipts of several passes as one.

    Args:
        receipts: of one intervention.
        same_rows: whether the passes had the same rows, one after the other, rather than rows of their own.
    """
    found = [receipt for receipt in receipts if receipt is not None]
    if not found:
        return None
    count = max if same_rows else sum
    return GateReceipt(
        count(receipt.rows_asked for receipt in found),
        sum(receipt.tokens_asked for receipt in found),
        count(receipt.rows_opened for receipt in found),
        sum(receipt.tokens_opened for receipt in found),
        tuple(
            NodeReceipt(
                same[0].place,
                same[0].must_open,
                count(node.rows for node in same),
                sum(node.tokens for node in same),
            )
            for same in zip(*(receipt.gates for receipt in found), strict=True)
        ),
    )
