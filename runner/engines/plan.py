"""What a request is to have done to it, as numbers: what travels from the front end to the workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, Self, TypedDict

from subvene.runner.engines.collecting import Sums
from subvene.runner.engines.intervals import Interval, within

ASKED, PLAN, TAG = "subvene", "subvene_plan", "subvene_tag"
"""Under which names a request's extra arguments say what is asked for, what is done, and who is told."""
MOST_UNTOLD = 4096
"""Requests of which a worker keeps what it measured for a front end that never asks for it."""
Extra = Mapping[str, Any] | None
"""A request's extra arguments."""


class WirePlan(TypedDict):
    """A `Plan` as JSON values, which survive msgpack, HTTP and Ray.

    Attributes:
        prompt: tokens that the request begins with.
        edits: of each edit its group, stage, strength, identity and positions.
        key: under which the front end asks what came of it.
        collect: what is read of it: sites, start, end.
    """

    prompt: int
    edits: list[list[Any]]
    key: NotRequired[str]
    collect: NotRequired[list[Any]]


class Told(TypedDict):
    """What a worker tells of a request.

    Attributes:
        problem: why it was not edited.
        sites: by site tokens with an edit, tokens changed, Σ ‖Δ‖/‖h‖.
        sums: what it has read.
    """

    problem: str | None
    sites: dict[str, list[float]]
    sums: NotRequired[Sums]


@dataclass(frozen=True)
class PlannedEdit:
    """One intervention in one request.

    Attributes:
        group: its number in the engine's catalogue.
        stage: see `stages`.
        strength: what multiplies it; never 0.
        identity: what it does, whatever its number: the artifact's digest and its place in the file.
        positions: the tokens that it edits.
    """

    group: int
    stage: int
    strength: float
    identity: str
    positions: tuple[Interval, ...]


@dataclass(frozen=True)
class Plan:
    """All that is done to one request.

    Attributes:
        prompt: tokens of the prompt, of which positions count.
        edits: what is done; what has strength 0 is not among them.
    """

    prompt: int
    edits: tuple[PlannedEdit, ...]

    def to_wire(self) -> WirePlan:
        """As JSON values, which survive msgpack, HTTP and Ray."""
        edits: list[list[Any]] = [
            [edit.group, edit.stage, edit.strength, edit.identity, [list(span) for span in edit.positions]]
            for edit in self.edits
        ]
        return {"prompt": self.prompt, "edits": edits}

    @classmethod
    def from_wire(cls, wire: WirePlan) -> Self:
        """What `to_wire` wrote."""
        edits = tuple(
            PlannedEdit(group, stage, strength, identity, tuple((first, end) for first, end in spans))
            for group, stage, strength, identity, spans in wire["edits"]
        )
        return cls(wire["prompt"], edits)


def block_keys(wire: WirePlan | None, start: int, end: int) -> tuple[tuple[Any, ...], ...]:
    """What tells the cached tokens [start, end) from the same tokens under another plan; empty if nothing.

    Keys and values of a token depend on what was done to it and to the tokens before it. Engines chain the
    hashes of blocks, so that a block's key need name only what was done within it, and what was not yet
    edited is shared by every request that begins in the same way.

    Args:
        wire: the plan as it travels; None: nothing is edited.
        start: first position of the block.
        end: the position after its last.
    """
    if wire is None:
        return ()
    return tuple(
        ("subvene", identity, stage, strength, first - start, last - start)
        for _, stage, strength, identity, spans in wire["edits"]
        for first, last in within(spans, start, end)
    )
