"""What an endpoint's tokens cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Priced(Protocol):
    """What a spec says of prices, per million tokens; None: nobody said."""

    @property
    def input_price(self) -> float | None: ...  # noqa: D102

    @property
    def output_price(self) -> float | None: ...  # noqa: D102


def with_cost(counts: Mapping[str, Any], prices: Priced) -> dict[str, Any]:
    """An endpoint's counts and `cost`: None without prices, or where a reply came without its counts."""
    cost = None
    if prices.input_price is not None and prices.output_price is not None and not counts["uncounted"]:
        spent = counts["prompt_tokens"] * prices.input_price
        cost = (spent + counts["completion_tokens"] * prices.output_price) / 1e6
    return {**counts, "cost": cost}
