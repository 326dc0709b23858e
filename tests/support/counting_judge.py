"""A judge of traits for tiny models, whose words mean nothing: it counts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from subvene.runner.data.traits import Trait
from subvene.runner.judges.traits import Exchange, Score, TraitJudge


class Counting(TraitJudge):
    """Scores a response by the share of its words that come early in the alphabet: any rule would do."""

    def __init__(self, limit: str = "h") -> None:
        self.limit = limit
        self.asked = 0

    def check(self, traits: Sequence[Trait]) -> None:
        """Nothing is needed."""

    def trait(self, trait: Trait, exchanges: Sequence[Exchange]) -> list[Score]:
        self.asked += len(exchanges)
        return [Score(100 * _share(one.answer, lambda word: word < self.limit)) for one in exchanges]

    def coherence(self, exchanges: Sequence[Exchange]) -> list[Score]:
        return [Score(100 * len(set(one.answer.split())) / len(one.answer.split())) for one in exchanges]

    def describe(self, traits: Sequence[Trait]) -> dict[str, Any]:
        return {"kind": "counting", "limit": self.limit, "agreement": {trait.name: None for trait in traits}}


def _share(text: str, keeps: Callable[[str], bool]) -> float:
    words = text.split()
    return sum(map(keeps, words)) / len(words)
