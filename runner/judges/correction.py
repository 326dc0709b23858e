"""What a judge's mistakes do to a share: the raw share, corrected by sensitivity and specificity.

Of answers of which the share π has a quality, a judge says yes to π·Se + (1 − π)·(1 − Sp): a difference
between two conditions comes out smaller by the factor J = Se + Sp − 1 (Youden, 1950). Rogan and Gladen (1978)
turn that around; the interval, which knows that Se and Sp were measured on so many labels, is that of Lang
and Reiczigel (2014), "Confidence limits for prevalence of disease adjusted for estimated sensitivity and
specificity", Preventive Veterinary Medicine 113, 13-22.

It assumes that the judge errs on these answers as often as on those of the labels, which are other models'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

from subvene.specs import SubveneError

_LEAST_J = 0.05


class CorrectionError(SubveneError, ValueError):
    """A judge's rates do not allow a correction."""


@dataclass(frozen=True)
class ErrorRates:
    """How often a judge is right, by what people say.

    Attributes:
        sensitivity: share of yes where people say yes.
        specificity: share of no where people say no.
        n_yes: on how many labels of yes the one was measured.
        n_no: on how many labels of no the other was.
    """

    sensitivity: float
    specificity: float
    n_yes: int
    n_no: int

    @property
    def youden(self) -> float:
        """J: by what factor a difference between two shares comes out."""
        return self.sensitivity + self.specificity - 1

    @classmethod
    def of(cls, stated: object) -> Self | None:
        """The rates in a record of agreement (`Agreement` as JSON); None if it does not have both."""
        if not isinstance(stated, dict):
            return None
        numbers = [stated.get(name) for name in ("n", "yes_rate", "accuracy_on_yes", "accuracy_on_no")]
        if not all(isinstance(number, int | float) for number in numbers):
            return None
        n, yes_rate, on_yes, on_no = (float(number) for number in numbers if number is not None)
        n_yes = round(n * yes_rate)
        return cls(on_yes, on_no, n_yes, round(n) - n_yes)


@dataclass(frozen=True)
class Corrected:
    """A share as it would be without the judge's mistakes, cut to 0 to 1, and its interval."""

    share: float
    low: float
    high: float


def corrected(share: float, n: int, rates: ErrorRates, *, level: float = 0.95) -> Corrected:
    """The Rogan–Gladen estimate with the interval of Lang and Reiczigel.

    Args:
        share: of answers to which the judge says yes.
        n: how many answers; they count as independent.
        rates: how often the judge is right.
        level: of the interval.

    Raises:
        CorrectionError: there are no answers, or the judge hardly tells yes from no (J < 0.05).
    """
    if n < 1 or not 0 <= share <= 1:
        raise CorrectionError(f"expected a share from 0 to 1 of at least one answer, found {share} of {n}")
    if rates.youden < _LEAST_J:
        raise CorrectionError(
            f"sensitivity {rates.sensitivity:.3f} and specificity {rates.specificity:.3f} tell yes from "
            "no no better than chance: nothing can be corrected by them"
        )
    z = NormalDist().inv_cdf((1 + level) / 2)
    n_all, n_yes, n_no = n + z**2, rates.n_yes + 2, rates.n_no + 2
    raw = (n * share + z**2 / 2) / n_all
    se = (rates.n_yes * rates.sensitivity + 1) / n_yes
    sp = (rates.n_no * rates.specificity + 1) / n_no
    middle = (raw + sp - 1) / (se + sp - 1)
    of_se, of_sp = se * (1 - se) / n_yes, sp * (1 - sp) / n_no
    shift = 2 * z**2 * (middle * of_se - (1 - middle) * of_sp)
    variance = raw * (1 - raw) / n_all + middle**2 * of_se + (1 - middle) ** 2 * of_sp
    half = z * math.sqrt(variance) / (se + sp - 1)
    point = (share + rates.specificity - 1) / rates.youden
    return Corrected(_cut(point), _cut(middle + shift - half), _cut(middle + shift + half))


def _cut(share: float) -> float:
    return min(max(share, 0.0), 1.0)
