"""Budgets of a comparison: how the strength of each condition was found, as results hold it."""

from __future__ import annotations

from subvene.runner.experiments.comparison.strength_search import StrengthTried
from subvene.runner.experiments.results import Point, Record, Results

BUDGETS = "budgets"


class BudgetSearch(Record):
    """How the strengths of a condition were found, at one point of its sweep, for one seed and fold.

    Attributes:
        condition: its name.
        seed: for which.
        fold: for which.
        point: of its sweep.
        strengths: as declared, by path.
        kl: the target, nats per token.
        within: how far from it the search may end, as a share of it.
        texts: on how many KL is measured; conditions are not tested on these.
        tried: the multiples of the declared strengths, in the order in which they were tried.
        rises: whether KL rises with the strength among all that was tried.
        multiple: that keeps to the budget; None where none does.
        chosen: the point with these strengths; None where none do.
        why: none does, in words; None where one does.
    """

    condition: str
    seed: int
    fold: int
    point: Point
    strengths: dict[str, float]
    kl: float
    within: float
    texts: int
    tried: tuple[StrengthTried, ...]
    rises: bool
    multiple: float | None = None
    chosen: Point | None = None
    why: str | None = None

    @property
    def reached(self) -> float | None:
        """KL at the chosen strengths, on the texts of the search; None where none were."""
        return next((one.kl for one in self.tried if one.multiple == self.multiple), None)


class BudgetSearches(Record):
    """All searches of a run."""

    searches: tuple[BudgetSearch, ...]


def budgets_in(results: Results) -> tuple[BudgetSearch, ...]:
    """Those that results hold; none where nothing was searched for."""
    found = results.section(BUDGETS, BudgetSearches)
    return () if found is None else found.searches
