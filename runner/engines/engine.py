"""What runs the model of an experiment where transformers in this process does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from subvene.runner.edits.receipt import Receipt
from subvene.runner.files.json_value import Json
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.rollouts import Rollout, Row


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

    def rollouts(
        self, m: IntervenedModel, rows: Sequence[Row], *, batch_size: int = 64, description: str = "responses"
    ) -> tuple[list[Rollout], list[Receipt]]:
        """As `runner.intervened.rollouts.rollouts`; sampled tokens are other ones.

        Raises:
            EngineError: it cannot be done, or the engine is gone.
            NotSteeredError: a request was not steered as declared.
            NotFiniteError: of a request activations were not finite; `rows` says of which.
        """

    def log_probs(
        self,
        m: IntervenedModel,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        batch_size: int = 16,
        description: str = "scoring",
    ) -> tuple[torch.Tensor, list[Receipt]]:
        """As `runner.intervened.scoring.log_probs`, each pair with its whole prompt; errors as above."""

    def close(self) -> None:
        """Let it go."""
