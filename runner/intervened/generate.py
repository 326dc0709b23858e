"""What generates responses, as `rollouts` does: this process, or a server that holds the same model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from subvene.runner.edits.receipt import Receipt
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.rollouts import Rollout, Row


class Generate(Protocol):
    """Generates rows' responses, as `rollouts` does, in this process or elsewhere."""

    def __call__(
        self, m: IntervenedModel, rows: Sequence[Row], *, batch_size: int = 64, description: str = "responses"
    ) -> tuple[list[Rollout], list[Receipt]]:
        """As `rollouts`."""
