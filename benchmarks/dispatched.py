"""Counting the operations that a call dispatches.

On a GPU each of them is a launch, and decoding a token is bound by launches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Dispatched(TorchDispatchMode):
    """Counts by name what is dispatched inside, but for views and allocations, which compute nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and not str(func).startswith("aten.empty"):
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def dispatched(work: Callable[[], object]) -> Counter[str]:
    """The operations of one call of `work`, by name."""
    with Dispatched() as counter:
        work()
    return counter.counts


def of_a_step(generate: Callable[[int], object], *, short: int = 4, steps: int = 8) -> float:
    """Operations that one more decoding step costs, the mean over `steps` steps after the first `short`.

    Args:
        generate: generates this many tokens, neither more nor fewer.
        short: tokens of the run that is taken off, so that what a run costs once does not count.
        steps: how many more the other run has.
    """
    generate(short)  # what is made once and kept is made here
    long, less = (dispatched(lambda n=n: generate(n)).total() for n in (short + steps, short))
    return (long - less) / steps
