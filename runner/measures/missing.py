"""Verdicts that a judge still owes, because it gave no usable reply: how many, why, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

ASPECTS = ("true", "info")
_REASONS = 3


def missing_verdicts(by_question: Iterable[Mapping[str, Mapping[str, Any]]]) -> Counter[str]:
    """Why verdicts are missing, with how many are for each reason.

    Args:
        by_question: of each cell or arm, by question, what was measured of it.
    """
    return Counter(
        str(values[f"{aspect}_missing"])
        for questions in by_question
        for values in questions.values()
        for aspect in ASPECTS
        if f"{aspect}_missing" in values
    )


def missing_in_words(reasons: Counter[str]) -> str:
    """`3 verdicts are missing …`, with the most frequent reasons and what to do."""
    n = reasons.total()
    named = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(_REASONS))
    return (
        f"{n} verdict{' is' if n == 1 else 's are'} missing, because the judge gave no usable reply "
        f"({named}); run the same command again: only what is missing is asked for"
    )
