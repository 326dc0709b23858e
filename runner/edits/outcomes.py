"""What the last run left behind, told apart by the thread that made it."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field

import torch

from subvene.runner.edits.receipt import Receipt


@dataclass(frozen=True)
class Outcome:
    """What one run left behind.

    Attributes:
        receipt: what each intervention did; None for a run that failed, or that was disabled.
        collected: key → per row, the activations [tokens, width] that a reading intervention kept.
    """

    receipt: Receipt | None = None
    collected: dict[str, list[torch.Tensor]] = field(default_factory=dict)


class Outcomes:
    """The outcome of the last run, as each thread sees it.

    A thread sees that of its own last run, or of a later one in a thread that has ended since (somebody who
    streams an answer generates in a thread and joins it). A thread that has run nothing sees the last of all.
    """

    def __init__(self) -> None:
        # Weakly, so that threads and this object can both be forgotten (and this one copied).
        self._own: weakref.WeakKeyDictionary[threading.Thread, Outcome] = weakref.WeakKeyDictionary()
        self._latest: tuple[weakref.ref[threading.Thread] | None, Outcome] = (None, Outcome())

    def put(self, outcome: Outcome) -> None:
        """Make `outcome` that of the last run of this thread."""
        thread = threading.current_thread()
        self._own[thread] = outcome
        self._latest = (weakref.ref(thread), outcome)

    def get(self) -> Outcome:
        """The outcome of the last run, as this thread sees it."""
        made_by, latest = self._latest
        own = self._own.get(threading.current_thread())
        thread = None if made_by is None else made_by()
        return latest if own is None or thread is None or not thread.is_alive() else own
