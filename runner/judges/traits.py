"""Judges of traits: how strongly a response shows one, and whether it is coherent, from 0 to 100.

The same kinds of judges as for truth, by their specs; `trait_registry` makes them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from subvene.runner.data.traits import Trait

if TYPE_CHECKING:
    from subvene.runner.intervened.model import IntervenedModel


@dataclass(frozen=True)
class Exchange:
    """A question and the response that is judged."""

    question: str
    answer: str


@dataclass(frozen=True)
class Score:
    """What a judge says of one response.

    Attributes:
        value: 0 to 100; None if there is no score.
        refused: whether the judge said that the response refuses to answer.
        reason: why there is no score.
        missing: whether the judge gave no usable reply, so that it is to be asked again. False where it was
            understood and gives no score.
    """

    value: float | None
    refused: bool = False
    reason: str | None = None
    missing: bool = False


class TraitJudge(ABC):
    """Scores responses for traits, and for coherence."""

    @abstractmethod
    def check(self, traits: Sequence[Trait]) -> None:
        """Find out, before any model is loaded, whether the judge can score these traits.

        Raises:
            JudgeError: naming what is missing and what to do.
        """

    @abstractmethod
    def trait(self, trait: Trait, exchanges: Sequence[Exchange]) -> list[Score]:
        """How strongly each response shows the trait; in the order of `exchanges`."""

    @abstractmethod
    def coherence(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """How coherent each response is, whatever it says; in the order of `exchanges`."""

    @abstractmethod
    def describe(self, traits: Sequence[Trait]) -> dict[str, Any]:
        """What a record says of the judge, as JSON values.

        Returns:
            `kind`, what identifies the judge exactly, and `agreement`: by trait how well it tells the trait
            file's written-out contrasts apart (None where there are none).
        """

    def identity(self, traits: Sequence[Trait]) -> dict[str, Any]:
        """What scores depend on: `describe` without what was measured of the judge; it costs little."""
        measured = ("agreement", "coherence")
        return {name: value for name, value in self.describe(traits).items() if name not in measured}

    def with_model(self, model: IntervenedModel) -> TraitJudge:
        """The judge for the responses of a model, which it may ask, unedited, how likely a text is."""
        return self

    def usage(self) -> dict[str, Any]:
        """JSON values: requests, tokens, cost so far; empty for a judge that costs nothing."""
        return {}
