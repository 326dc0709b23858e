"""How far each condition of a trait is from the first, question by question, and how sure that is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from subvene.runner.experiments.results import Condition, Record
from subvene.runner.files.statistics import holm, paired_t

MEASURES = ("score", "coherence", "projection")
"""What responses have a number of."""


class PairedDifference(Record):
    """A condition against the first one of its trait, paired by question.

    Attributes:
        trait: whose.
        condition: its label.
        against: the label of the first.
        measure: `score`, `coherence` or `projection`.
        value: mean difference.
        low: lower bound of its 95 % interval.
        high: upper bound.
        p: of the paired t-test, two-sided; None where all differences are the same.
        p_holm: corrected over all traits and conditions that have the measure.
        n: questions; the responses to one are averaged first.
    """

    trait: str
    condition: str
    against: str
    measure: str
    value: float
    low: float
    high: float
    p: float | None
    p_holm: float | None = None
    n: int


def differences_of(conditions: Sequence[Condition]) -> list[PairedDifference]:
    """Every condition's differences from the first of its trait; measure by measure.

    Args:
        conditions: of all traits.
    """
    by_trait: dict[str, list[Condition]] = {}
    for condition in conditions:
        by_trait.setdefault(condition.group or "", []).append(condition)
    found = []
    for measure in MEASURES:
        rows = [
            gap
            for trait, (first, *others) in by_trait.items()
            for other in others
            if (gap := _difference(trait, first, other, measure)) is not None
        ]
        corrected = iter(holm([gap.p for gap in rows if gap.p is not None]))
        found += [
            gap if gap.p is None else gap.model_copy(update={"p_holm": next(corrected)}) for gap in rows
        ]
    return found


def _difference(trait: str, first: Condition, other: Condition, measure: str) -> PairedDifference | None:
    ours, theirs = _by_question(other, measure), _by_question(first, measure)
    keys = sorted(ours.keys() & theirs.keys())
    tested = paired_t([ours[key] for key in keys], [theirs[key] for key in keys])
    if tested is None:
        return None
    return PairedDifference(
        trait=trait,
        condition=other.label,
        against=first.label,
        measure=measure,
        value=tested.value,
        low=tested.low,
        high=tested.high,
        p=tested.p,
        n=len(keys),
    )


def _by_question(condition: Condition, measure: str) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for item in condition.items:
        if (value := item.scores.get(measure)) is not None:
            values.setdefault(item.key, []).append(float(value))
    return {key: statistics.fmean(some) for key, some in values.items()}
