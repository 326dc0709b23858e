"""How far a judge agrees with people: accuracy, AUC and calibration, beside what the majority label gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from subvene.runner.judges.scales.yes_no import Judgement

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Judgements whose probabilities lie close together.

    Attributes:
        low: the least probability of the bin, included.
        high: the largest, excluded (the last bin includes 1).
        n: how many judgements.
        mean_probability: their mean.
        yes_rate: how many of them people said yes to.
    """

    low: float
    high: float
    n: int
    mean_probability: float
    yes_rate: float


@dataclass(frozen=True)
class Agreement:
    """A judge against human labels; what is None could not be measured on these rows.

    Attributes:
        n: rows with a label and a verdict; everything below is over these.
        unjudged: rows to which the judge gave no verdict.
        accuracy: verdicts that agree.
        majority: the accuracy of always giving the more common label.
        auc: area under the ROC curve; None where all labels are the same.
        brier: mean squared difference between probability and label.
        ece: expected calibration error over `bins`: the mean distance of a bin's probability from its share
            of yes, weighted by its size.
        yes_rate: rows that people said yes to.
        judged_yes_rate: rows that the judge said yes to.
        accuracy_on_yes: accuracy on the rows that people said yes to (sensitivity).
        accuracy_on_no: accuracy on the others (specificity).
        bins: ten of equal width; empty ones are left out.
    """

    n: int
    unjudged: int
    accuracy: float | None = None
    majority: float | None = None
    auc: float | None = None
    brier: float | None = None
    ece: float | None = None
    yes_rate: float | None = None
    judged_yes_rate: float | None = None
    accuracy_on_yes: float | None = None
    accuracy_on_no: float | None = None
    bins: tuple[Bin, ...] = ()


def agreement(labels: Sequence[bool], judgements: Sequence[Judgement]) -> Agreement:
    """Measures a judge against labels; one judgement for each label, in their order."""
    from sklearn.metrics import brier_score_loss, roc_auc_score

    pairs = [
        (label, one.verdict, one.probability)
        for label, one in zip(labels, judgements, strict=True)
        if one.verdict is not None and one.probability is not None
    ]
    unjudged = len(judgements) - len(pairs)
    if not pairs:
        return Agreement(0, unjudged)
    yes, said = (np.array([pair[i] for pair in pairs], dtype=bool) for i in (0, 1))
    p = np.array([pair[2] for pair in pairs], dtype=float)
    bins = calibration_bins(yes, p)
    both = bool(yes.any() and not yes.all())
    return Agreement(
        n=len(pairs),
        unjudged=unjudged,
        accuracy=float((yes == said).mean()),
        majority=float(max(yes.mean(), 1 - yes.mean())),
        auc=float(roc_auc_score(yes, p)) if both else None,
        brier=float(brier_score_loss(yes, p, pos_label=True)),
        ece=float(sum(one.n * abs(one.mean_probability - one.yes_rate) for one in bins)) / len(pairs),
        yes_rate=float(yes.mean()),
        judged_yes_rate=float(said.mean()),
        accuracy_on_yes=float(said[yes].mean()) if yes.any() else None,
        accuracy_on_no=float((~said[~yes]).mean()) if not yes.all() else None,
        bins=bins,
    )


def calibration_bins(yes: Sequence[bool] | np.ndarray, p: Sequence[float] | np.ndarray) -> tuple[Bin, ...]:
    """Ten bins of equal width over the probability of yes, empty ones left out."""
    yes, p = np.asarray(yes, dtype=float), np.asarray(p, dtype=float)
    # Not linspace, whose 0.30000000000000004 would put a probability of 0.3 one bin too low.
    edges = np.arange(BINS + 1) / BINS
    place = np.clip(np.digitize(p, edges[1:-1]), 0, BINS - 1)
    return tuple(
        Bin(float(low), float(high), int(inside.sum()), float(p[inside].mean()), float(yes[inside].mean()))
        for i, (low, high) in enumerate(pairwise(edges))
        if (inside := place == i).any()
    )
