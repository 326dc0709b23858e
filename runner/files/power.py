"""What an experiment of a given size can find, before it is run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self


def smallest_p(draws: int) -> float:
    """The smallest p that the rank of one set among so many random draws can have: 1/(draws + 1)."""
    if draws < 1:
        raise ValueError(f"draws: expected a positive number, found {draws}")
    return 1 / (draws + 1)


def detectable_difference(n: int, sd: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The mean paired difference that a two-sided paired t-test over n items finds with this power.

    Args:
        n: items, such as questions.
        sd: standard deviation of the items' differences, in the unit of the result.
        alpha: level of the test.
        power: chance of p below `alpha` where there is such a difference.
    """
    from scipy import optimize, stats

    if n < 2 or sd <= 0 or not 0 < alpha < power < 1:
        raise ValueError("expected n of at least 2, sd above 0, and 0 < alpha < power < 1")
    edge = stats.t.isf(alpha / 2, n - 1)

    def missing(effect: float) -> float:
        shift = effect * math.sqrt(n)
        other = float(stats.nct.cdf(-edge, n - 1, shift))
        # So far out that scipy has no number for it, it adds nothing.
        return float(stats.nct.sf(edge, n - 1, shift)) + (0 if math.isnan(other) else other) - power

    most = edge / math.sqrt(n)
    while missing(most) < 0:
        most *= 1.3
    return sd * float(optimize.brentq(missing, 0.0, most))


@dataclass(frozen=True)
class Power:
    """What so many draws and questions can find.

    Attributes:
        draws: number of draws → the smallest p of a rank among them.
        questions: number of questions → the difference that they show.
        sd: of the questions' paired differences, that this takes for granted.
        alpha: level of the test.
        power: chance to find the difference.
    """

    SD: ClassVar[float] = 0.5
    """The standard deviation that is taken for granted unless another is said."""
    POWER: ClassVar[float] = 0.8

    draws: dict[int, float]
    questions: dict[int, float]
    sd: float
    alpha: float
    power: float

    @classmethod
    def of(
        cls,
        draws: Iterable[int],
        questions: Iterable[int],
        *,
        sd: float = SD,
        alpha: float = 0.05,
        power: float = POWER,
    ) -> Self:
        """For these numbers of draws and questions."""
        return cls(
            {n: smallest_p(n) for n in draws},
            {n: detectable_difference(n, sd, alpha=alpha, power=power) for n in questions},
            sd,
            alpha,
            power,
        )

    def lines(self) -> list[str]:
        """A table as text, a line for each number."""
        found = []
        for n, p in self.draws.items():
            note = f"  (no set can reach {self.alpha:g})" if p > self.alpha else ""
            found.append(f"{n:>5} draws      smallest p of a rank     {p:.4f}{note}")
        for n, gap in self.questions.items():
            found.append(f"{n:>5} questions  detectable difference    {gap:.4f}")
        return found
