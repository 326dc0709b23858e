"""Verdicts that a judge still owes, because it gave no usable reply: how many, why, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, TypedDict

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


class ItemParts(TypedDict):
    """Fields of an item of the results."""

    key: str
    text: str | None
    scores: dict[str, float | bool | None]
    missing: dict[str, str | None]


def item_parts(key: str, values: Mapping[str, Any]) -> ItemParts:
    """What was measured of one question, as an item of the results has it.

    Args:
        key: of the question.
        values: `answer`; scores by name; `true_missing`: why a verdict is still owed.
    """
    missing = {aspect: values[f"{aspect}_missing"] for aspect in ASPECTS if f"{aspect}_missing" in values}
    others = {"answer", *(f"{aspect}_missing" for aspect in missing)}
    scores = {name: value for name, value in values.items() if name not in others}
    return {"key": key, "text": values.get("answer"), "scores": scores, "missing": missing}
