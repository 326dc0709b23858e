"""What generates and scores: this process (`rollouts`, `log_probs`), or an engine with the same model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from subvene.runner.edits.receipt import Receipt
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.rollouts import Rollout, Row


class Generate(Protocol):
    """Generates rows' responses, as `rollouts` does, in this process or elsewhere."""

    def __call__(
        self, m: IntervenedModel, rows: Sequence[Row], *, batch_size: int = 64, description: str = "responses"
    ) -> tuple[list[Rollout], list[Receipt]]:
        """As `rollouts`."""


class Score(Protocol):
    """Scores given responses, as `log_probs` does, in this process or elsewhere."""

    def __call__(
        self,
        m: IntervenedModel,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        batch_size: int = 16,
        description: str = "scoring",
    ) -> tuple[torch.Tensor, list[Receipt]]:
        """As `log_probs`."""
