"""Position rules as intervals of absolute positions.

What an engine that mixes requests, cuts prompts into chunks and computes tokens again can compare a token's
own position with, whatever call it comes in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from subvene.runner.engines.errors import RequestError
from subvene.specs import FirstTokens, LastTokens, Positions, TokenIndices

FOREVER = 2**31 - 1
"""An end that no position reaches; it fits into 32 bits."""

Interval = tuple[int, int]
"""[first, end) in 0-based absolute positions."""


def intervals(rule: Positions, prompt: int, length: int | None = None) -> tuple[Interval, ...]:
    """The tokens that a rule selects, ascending and apart from each other.

    Args:
        rule: the rule (see `subvene.specs.Positions`).
        prompt: tokens of the prompt, at least 1.
        length: tokens of the whole sequence; None while it is being generated.

    Raises:
        RequestError: the rule counts from an end that is not known, or this file does not know the rule.
    """
    match rule:
        case "all":
            found = [(0, FOREVER)]
        case "prompt":
            found = [(0, prompt)]
        case "response":
            found = [(prompt - 1, FOREVER)]
        case "last_prompt_token":
            found = [(prompt - 1, prompt)]
        case FirstTokens() | LastTokens() | TokenIndices():
            found = _counted(rule, prompt, length)
        case _:
            raise RequestError(f"positions {rule!r}: this engine does not know which tokens they select")
    return tuple(_joined((max(first, 0), end) for first, end in found))


def _counted(
    rule: FirstTokens | LastTokens | TokenIndices, prompt: int, length: int | None
) -> list[Interval]:
    begin, end = (0, prompt) if rule.of == "prompt" else (prompt, FOREVER if length is None else length)
    if end == FOREVER and (isinstance(rule, LastTokens) or _counts_back(rule)):
        raise RequestError(
            f"positions {rule.model_dump(mode='json')} count from the end of the response, which is not "
            "known while it is generated"
        )
    if isinstance(rule, FirstTokens):
        return [(begin, min(begin + rule.first, end))]
    if isinstance(rule, LastTokens):
        return [(max(begin, end - rule.last), end)]
    at = [begin + i if i >= 0 else end + i for i in rule.indices]
    return [(i, i + 1) for i in at if begin <= i < end]


def _counts_back(rule: FirstTokens | LastTokens | TokenIndices) -> bool:
    return isinstance(rule, TokenIndices) and min(rule.indices) < 0


def _joined(found: Iterable[Interval]) -> list[Interval]:
    """Ascending, with what touches or overlaps made one."""
    joined: list[Interval] = []
    for first, end in sorted(found):
        if first >= end:
            continue
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((first, end))
    return joined


def within(found: Sequence[Interval], first: int, end: int) -> list[Interval]:
    """The parts of intervals that lie in [first, end)."""
    cut = ((max(a, first), min(b, end)) for a, b in found)
    return [(a, b) for a, b in cut if a < b]


def count(found: Sequence[Interval], first: int, end: int) -> int:
    """How many positions of intervals lie in [first, end)."""
    return sum(b - a for a, b in within(found, first, end))
