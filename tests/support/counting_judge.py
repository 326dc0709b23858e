"""A judge of traits for tiny models, whose words mean nothing: it counts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest

from subvene.runner.judges import BACKENDS, COHERENCE, Answer, Judge, Quality, Score
from subvene.runner.judges.base import AnyQuality, Description, Identity


class Counting(Judge):
    """Scores a response by the share of its words that come early in the alphabet: any rule would do."""

    kind: ClassVar[str] = "counting"

    def __init__(self, limit: str = "h") -> None:
        self.limit = limit
        self.asked = 0

    def check(self, qualities: Sequence[AnyQuality]) -> None:
        """Nothing is needed."""

    def zero_to_hundred(self, answers: Sequence[Answer], quality: Quality[Score]) -> list[Score]:
        if quality == COHERENCE:
            return [Score(100 * len(set(one.answer.split())) / len(one.answer.split())) for one in answers]
        self.asked += len(answers)
        return [Score(100 * _share(one.answer, lambda word: word < self.limit)) for one in answers]

    def identity(self, qualities: Sequence[AnyQuality]) -> Identity:
        return {"kind": self.kind, "words": self.limit}

    def describe(self, qualities: Sequence[AnyQuality]) -> Description:
        names = [one.name for one in qualities if one.trait is not None]
        return {**self.identity(qualities), "agreement": dict.fromkeys(names)}


def install(judge: Judge, patch: pytest.MonkeyPatch) -> None:
    """Put a judge in the place of the trained one."""
    patch.setattr("counting_judge.made", lambda spec, folder, *, cache=None: judge)
    patch.setitem(BACKENDS, "trained", "counting_judge:made")


made: Any = Counting


def _share(text: str, keeps: Callable[[str], bool]) -> float:
    words = text.split()
    return sum(map(keeps, words)) / len(words)
