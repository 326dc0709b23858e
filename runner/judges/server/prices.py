"""What an endpoint was asked, and what its tokens cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Protocol, cast

from subvene.runner.judges.base import Usage


@dataclass
class Counts:
    """What a server was asked; see `base.Usage`."""

    requests: int
    retries: int
    from_cache: int
    prompt_tokens: int
    completion_tokens: int
    uncounted: int


class Priced(Protocol):
    """What a spec says of prices, per million tokens; None: nobody said."""

    @property
    def input_price(self) -> float | None: ...  # noqa: D102

    @property
    def output_price(self) -> float | None: ...  # noqa: D102


def with_cost(counts: Counts, prices: Priced) -> Usage:
    """An endpoint's counts and `cost`: None without prices, or where a reply came without its counts."""
    cost = None
    if prices.input_price is not None and prices.output_price is not None and not counts.uncounted:
        spent = counts.prompt_tokens * prices.input_price
        cost = (spent + counts.completion_tokens * prices.output_price) / 1e6
    return cast(Usage, {**asdict(counts), "cost": cost})
