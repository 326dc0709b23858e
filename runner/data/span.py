"""A tokenised text and the part of it that is read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """A tokenised text and the span of it that is read.

    Attributes:
        ids: token ids.
        start: first token of the span, 0-based.
        end: one past its last token.
    """

    ids: tuple[int, ...]
    start: int
    end: int
