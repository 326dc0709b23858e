"""What one run keeps while it is under way, and the hooks that belong to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from subvene.interventions.positions import Rule
from subvene.runner.edits.finite_watch import FiniteWatch
from subvene.runner.edits.openings import Openings
from subvene.runner.edits.own_calls import OwnCalls
from subvene.runner.edits.positions import TokenTracker
from subvene.runner.edits.recorder import Recorder
from subvene.runner.edits.scopes import Scope
from subvene.runner.edits.sources import Fed
from subvene.specs import Positions


@dataclass(frozen=True)
class Entry:
    """One declared intervention: its name and the places where it acts.

    Attributes:
        name: what receipts and `strengths=` call it.
        sites: `site[layer]` of each place, in the order of `keys`.
        keys: the pyvene keys of its interventions.
    """

    name: str
    sites: tuple[str, ...]
    keys: tuple[str, ...]


@dataclass(eq=False)
class Run:
    """What one run keeps: where its tokens stand, what its edits did, and the strengths in force.

    Attributes:
        tracker: says where the tokens of each forward call stand.
        recorder: measures what the edits do.
        strengths: key → strength in force, scalar or [rows].
        watch: sees whether the calls stay finite.
        caches: the caches that its calls were given or made, by identity.
        fired: the edits that have run in the forward call that is under way.
        is_in_call: whether a forward call of the whole model is under way.
        own_calls: tells the calls of the generation from others, where the loop is not transformers' own.
        first: slot at which the first call began; None before it.
        attachment: its hooks, once they stand.
        entries: the declared interventions that act in it.
        fed: what the runs of its sources gave.
        openings: how far the gates of its interventions are open, by their names.
    """

    tracker: TokenTracker
    recorder: Recorder
    strengths: dict[str, torch.Tensor]
    watch: FiniteWatch
    caches: dict[int, Any] = field(default_factory=dict)
    fired: set[str] = field(default_factory=set)
    is_in_call: bool = False
    first: int | None = None
    own_calls: OwnCalls | None = None
    attachment: Attachment | None = None
    entries: tuple[Entry, ...] = ()
    fed: Fed = field(default_factory=Fed)
    openings: dict[str, Openings] = field(default_factory=dict)

    def rule(self, key: str, declared: Positions) -> Rule:
        """What selects the tokens of an edit.

        Its rule, or those of it that have a partner in a source, or at which its gate is open.
        """
        if (openings := self.gate(key)) is not None:
            return openings.rule
        return self.ungated_rule(key, declared)

    def ungated_rule(self, key: str, declared: Positions) -> Rule:
        """The same, whatever its gate says."""
        feed = self.fed.feeds.get(key)
        return declared if feed is None else feed.rule

    def gate(self, key: str) -> Openings | None:
        """How far the gate of an edit is open; None where it has none."""
        if not self.openings:
            return None
        name = next((entry.name for entry in self.entries if key in entry.keys), None)
        return None if name is None else self.openings.get(name)


@dataclass(eq=False)
class Attachment:
    """The hooks of one scope, and the run that they belong to at the moment."""

    scope: Scope
    run: Run | None = None
    handles: list[Any] = field(default_factory=list)

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
