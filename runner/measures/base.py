"""What evaluations share: strengths for a sweep over coefficients."""

from __future__ import annotations

from collections.abc import Sequence

from subvene.runner.intervened.model import IntervenedModel


def sweep_strengths(m: IntervenedModel, coefficients: Sequence[float]) -> dict[str, list[float]]:
    """Every intervention's strength, one per row of a batch whose rows have these coefficients."""
    return {entry.name: list(coefficients) for entry in m.intervenable.entries}
