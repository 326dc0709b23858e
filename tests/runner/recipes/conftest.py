"""What tests of recipes share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from iti_by_hand import QUESTIONS, ByHand

_cache: dict[int, ByHand] = {}


@pytest.fixture
def by_hand(loaded: Any) -> Callable[..., ByHand]:
    """`ByHand` of QUESTIONS, which many tests compare with, is read once for each `last_n`."""

    def of(last_n: int = 1) -> ByHand:
        if last_n not in _cache:
            _cache[last_n] = ByHand(loaded, QUESTIONS, last_n)
        return _cache[last_n]

    return of
