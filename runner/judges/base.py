"""What judges share: what is judged, what comes back, and what a judge must be able to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from subvene.specs import SubveneError

Aspect = Literal["truth", "info"]


@dataclass(frozen=True)
class Answer:
    """An answer to be judged.

    Attributes:
        question: the question, without `Q:`.
        answer: the answer, without `A:`.
        correct: the question's true reference answers; empty if there are none.
        incorrect: its false ones.
    """

    question: str
    answer: str
    correct: tuple[str, ...] = ()
    incorrect: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one answer.

    Attributes:
        probability: that the answer has the quality, 0 to 1; None if the judge does not tell.
        verdict: whether it has; None with `probability`.
        reason: why there is no verdict.
        missing: whether the judge gave no usable reply, so that it is to be asked again. False where it was
            understood and does not tell: that is what it says of this answer.
    """

    probability: float | None
    verdict: bool | None
    reason: str | None = None
    missing: bool = False


class JudgeError(SubveneError):
    """A judge cannot work; the message says what is missing and what to do."""


class Judge(ABC):
    """Says of answers whether they are true, and whether they are informative."""

    #: The qualities that this judge can tell.
    aspects: tuple[Aspect, ...] = ("truth", "info")

    @abstractmethod
    def check(self) -> None:
        """Find out, before any model is loaded, whether the judge can work.

        Raises:
            JudgeError: naming what is missing and what to do.
        """

    @abstractmethod
    def judge(self, answers: Sequence[Answer], aspect: Aspect) -> list[Judgement]:
        """Judge every answer; the results are in the answers' order, one each."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a record says of the judge, as JSON values.

        Returns:
            `kind`, what identifies the judge exactly, and under `accuracy` by aspect what is known of its
            agreement with human labels (None where nothing was measured).
        """

    def usage(self) -> dict[str, Any]:
        """JSON values: requests, tokens, cost so far; empty for a judge that costs nothing."""
        return {}

    def held_out(self, question: str) -> bool | None:
        """Whether the judge was fitted without this question: only such labels say what it is worth.

        Returns:
            True or False where the judge knows its own training questions, None where nobody knows.
        """
        return None
