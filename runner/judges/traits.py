"""Judges of traits: how strongly a response shows one, and whether it is coherent, from 0 to 100.

The same kinds of judges as for truth, by their specs; `make_trait_judge` is to traits what `make_judge` is to
truth and information.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subvene.runner.data.traits import Trait
from subvene.runner.judges.base import JudgeError

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


def _openai(spec: Any, folder: Path, cache: Path | None, model: IntervenedModel | None) -> TraitJudge:
    from subvene.runner.judges.traits_openai import OpenAITraitJudge

    return OpenAITraitJudge(spec, cache=cache)


def _transformers(spec: Any, folder: Path, cache: Path | None, model: IntervenedModel | None) -> TraitJudge:
    from subvene.runner.judges.traits_transformers import TransformersTraitJudge

    return TransformersTraitJudge(spec, folder)


def _trained(spec: Any, folder: Path, cache: Path | None, model: IntervenedModel | None) -> TraitJudge:
    from subvene.runner.judges.traits_trained import TrainedTraitJudge

    return TrainedTraitJudge(spec, model)


TRAIT_JUDGES: dict[str, Callable[[Any, Path, Path | None, Any], TraitJudge]] = {
    "openai": _openai,
    "trained": _trained,
    "transformers": _transformers,
}


def make_trait_judge(
    spec: Any, folder: Path, *, model: IntervenedModel | None = None, cache: Path | None = None
) -> TraitJudge:
    """The judge of traits that a spec declares; nothing is loaded and nothing is asked yet.

    Args:
        spec: one of `AnyJudge`.
        folder: what relative paths of the spec are relative to.
        model: the model whose responses are judged, for a judge that asks it, unedited, how likely a text is
            (`trained`, for coherence); may be left out until then.
        cache: where replies that cost something are kept; left out: `judgements` in subvene's cache folder.

    Raises:
        JudgeError: judges of this kind cannot score traits.
    """
    if spec.kind not in TRAIT_JUDGES:
        raise JudgeError(
            f"a judge of kind {spec.kind} compares answers with true and false ones, and a trait has none; "
            f"use one of {', '.join(TRAIT_JUDGES)}"
        )
    return TRAIT_JUDGES[spec.kind](spec, folder, cache, model)
