"""Verdicts that a judge still owes, because it gave no usable reply: how many, why, and what to do."""

from __future__ import annotations

from collections import Counter

ASPECTS = ("true", "info")
_REASONS = 3


def missing_in_words(reasons: Counter[str]) -> str:
    """`3 verdicts are missing …`, with the most frequent reasons and what to do."""
    n = reasons.total()
    named = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(_REASONS))
    return (
        f"{n} verdict{' is' if n == 1 else 's are'} missing, because the judge gave no usable reply "
        f"({named}); run the same command again: only what is missing is asked for"
    )
