"""What is read of a tokenised text: spans of tokens, and what it has in common with other texts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Passage:
    """A tokenised text and what of it is read.

    Attributes:
        ids: token ids.
        spans: (first token, one past the last) of each row that it gives; a row is the mean over its span.
        shared: how many tokens at its start other passages begin with as well; they are encoded once for
            neighbouring passages that agree in them.
    """

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    shared: int = 0


def last(end: int, count: int = 1, start: int = 0) -> tuple[int, int]:
    """The span of the last `count` tokens before `end`, fewer if the text begins at `start` only."""
    return max(start, end - count), end


def every_token(start: int, end: int) -> tuple[tuple[int, int], ...]:
    """A span for each token from `start` to before `end`."""
    return tuple((token, token + 1) for token in range(start, end))


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all of these begin with."""
    low, high = (
        min(map(tuple, rows)),
        max(map(tuple, rows)),
    )  # in lexical order, what the outermost two share all between do
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(low, high, strict=False)))


def shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """What `Passage.shared` is for these: what all of them begin with, a token of each being left over."""
    return min(common_prefix(rows), min(map(len, rows)) - 1) if len(rows) > 1 else 0
