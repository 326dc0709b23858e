"""What runs the model of an experiment where transformers in this process does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from subvene.runner.files.json_value import Json
from subvene.runner.intervened.generate import Generate, Score
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.passes.elsewhere import Read


class Engine(Protocol):
    """Holds the model of an experiment and all that its conditions declare."""

    @property
    def identity(self) -> dict[str, Json]:
        """What units depend on: which engine it is, of which versions, wherever it runs."""

    def check(self, m: IntervenedModel) -> None:
        """Find out, before anything is measured, whether it does what a model's interventions do.

        Raises:
            EngineError: it does not.
        """

    @property
    def rollouts(self) -> Generate:
        """As `runner.intervened.rollouts.rollouts`; sampled tokens are other ones.

        Raises:
            EngineError: it cannot be done, or the engine is gone.
            NotSteeredError: a request was not steered as declared.
            NotFiniteError: of a request activations were not finite; `rows` says of which.
        """

    @property
    def log_probs(self) -> Score:
        """As `runner.intervened.scoring.log_probs`, each pair with its whole prompt; errors as above."""

    def check_reads(self, sites: Sequence[str]) -> None:
        """Find out, before anything is measured, whether activations can be read at `site[layer]`s.

        Raises:
            EngineError: they cannot.
        """

    @property
    def activations(self) -> Read:
        """As `runner.passes.activations.span_means`, of the untouched model.

        Raises:
            EngineError: it cannot be done, or the engine is gone.
            NotFiniteError: activations are not finite.
        """

    def close(self) -> None:
        """Let it go."""
