"""The strength at which a method is so far from the untouched model: a walk by doublings, then interpolation.

KL is taken neither to rise with the strength nor to be continuous. The walk begins at the declared strengths
and doubles or halves until two neighbours lie on either side of the target, and looks one halving further
down; of the pairs that do, the one of the smallest strengths is narrowed. All that was tried is given back,
with whether KL rose throughout. Doublings are the same for every target: several budgets of one method share
them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from subvene.runner.experiments.results import Record
from subvene.specs.conditions import BudgetSpec

STEP = 2.0


class StrengthTried(Record):
    """A strength that was tried.

    Attributes:
        multiple: of the declared strengths.
        kl: nats per token; None where the model was no longer finite.
    """

    multiple: float
    kl: float | None


@dataclass(frozen=True)
class Found:
    """What a search gave.

    Attributes:
        tried: in the order in which they were.
        multiple: the one that meets the budget; None where none does.
        why: none does, in words; None where one does.
    """

    tried: tuple[StrengthTried, ...]
    multiple: float | None
    why: str | None = None


def rises(tried: Sequence[StrengthTried]) -> bool:
    """Whether KL rises with the strength, or stays, from each that was tried to the next larger one."""
    ordered = sorted(tried, key=lambda one: one.multiple)
    return all(_kl(a) <= _kl(b) for a, b in itertools.pairwise(ordered))


def search(kl_at: Callable[[float], float | None], budget: BudgetSpec) -> Found:
    """Find the multiple of the declared strengths whose KL is within a share of a target.

    Args:
        kl_at: KL at a multiple, nats per token; None where the model is no longer finite.
        budget: the target, the share, and what bounds the search.
    """
    return _Search(kl_at, budget).run()


@dataclass
class _Search:
    kl_at: Callable[[float], float | None]
    budget: BudgetSpec
    tried: dict[float, StrengthTried] = field(default_factory=dict)

    def run(self) -> Found:
        self._walk()
        sides: list[bool] = []
        while (bracket := self._bracket()) is not None and not self._spent:
            met = self._met()
            if met is not None and bracket[1].multiple >= met:
                break
            before = len(self.tried)
            halve = len(sides) > 1 and sides[-1] == sides[-2]
            side = self._narrow(*bracket, halve=halve)
            sides = [] if halve else [*sides, side]
            if len(self.tried) == before:  # a jump: there is no strength between the two
                break
        met = self._met()
        return Found((*self.tried.values(),), met, None if met is not None else self._why())

    def _walk(self) -> None:
        """Double or halve from 1 until there is a bracket, and once more below it."""
        first = self._try(1.0)
        at = first.multiple
        if _kl(first) < self.budget.kl:
            while (
                self._met() is None and self._bracket() is None and at < self.budget.most and not self._spent
            ):
                at = min(at * STEP, self.budget.most)
                self._try(at)
        while not self._spent and at > self.budget.least:
            lowest, bracket = self.tried[min(self.tried)], self._bracket()
            is_below = _kl(lowest) < self.budget.kl * (1 - self.budget.within)
            if is_below and (bracket is None or lowest.multiple < bracket[0].multiple):
                return
            at = max(lowest.multiple / STEP, self.budget.least)
            self._try(at)

    def _narrow(self, low: StrengthTried, high: StrengthTried, *, halve: bool) -> bool:
        """Try a strength between two: where the power law through both meets the target, or half-way.

        Returns:
            Whether it is beyond the target.
        """
        share = 0.5
        # Below zero a KL is rounding, and has no logarithm.
        if low.kl is not None and low.kl > 0 and high.kl is not None and not halve:
            share = math.log(self.budget.kl / low.kl) / math.log(high.kl / low.kl)
        share = min(max(share, 0.02), 0.98)
        guess = low.multiple * (high.multiple / low.multiple) ** share
        return _kl(self._try(_rounded(guess))) > self.budget.kl

    def _try(self, multiple: float) -> StrengthTried:
        if multiple not in self.tried:
            self.tried[multiple] = StrengthTried(multiple=multiple, kl=self.kl_at(multiple))
        return self.tried[multiple]

    @property
    def _spent(self) -> bool:
        return len(self.tried) >= self.budget.evaluations

    def _met(self) -> float | None:
        """The smallest multiple that meets the budget."""
        slack = self.budget.within * self.budget.kl
        return min(
            (m for m, one in self.tried.items() if abs(_kl(one) - self.budget.kl) <= slack), default=None
        )

    def _bracket(self) -> tuple[StrengthTried, StrengthTried] | None:
        """The neighbours of the smallest strengths, the first below the target and the second above."""
        ordered = [self.tried[multiple] for multiple in sorted(self.tried)]
        return next(
            ((a, b) for a, b in itertools.pairwise(ordered) if _kl(a) < self.budget.kl < _kl(b)), None
        )

    def _why(self) -> str:
        target, by_kl = f"a KL of {self.budget.kl:g}", sorted(self.tried.values(), key=_order)
        least, most = by_kl[0], by_kl[-1]
        bracket = self._bracket()
        if bracket is not None:
            low, high = (_said(one) for one in bracket)
            missed = f"was not met within {self.budget.within:.0%} in {len(self.tried)} evaluations"
            return f"{target} {missed}: KL is {low} and {high}"
        if _kl(most) < self.budget.kl:
            reach = f"of multiples up to {max(self.tried):g}"
            return f"{target} cannot be reached: KL is at most {_said(most)}, {reach}"
        if _kl(least) > self.budget.kl:
            reach = f"of multiples from {min(self.tried):g}"
            return f"{target} cannot be kept to: KL is at least {_said(least)}, {reach}"
        return f"{target} is met nowhere with rising KL: it falls from {_said(most)} to {_said(least)}"


def _kl(one: StrengthTried) -> float:
    """What is no longer finite is beyond every target."""
    return math.inf if one.kl is None else one.kl


def _order(one: StrengthTried) -> tuple[float, float]:
    """By KL; of equals the smaller strength says more of the largest."""
    return _kl(one), -one.multiple


def _said(one: StrengthTried) -> str:
    kl = "not finite" if one.kl is None else f"{one.kl:.4g}"
    return f"{kl} at {one.multiple:g} times the declared strengths"


def _rounded(multiple: float) -> float:
    """To six digits: what a table shows is what was run."""
    return float(f"{multiple:.6g}")
