"""A cell's numbers with their intervals, over held-out rows.

Accuracies have Wilson's interval, which a share of 0 or 1 has too; differences, paired by row, and shares of
draws have percentile bootstrap intervals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from subvene.runner.experiments.interchange.section import Cell, Control
from subvene.runner.experiments.tracing.effects import LEVEL, interval
from subvene.runner.experiments.tracing.section import Interval
from subvene.runner.measures.interchange import CellMeasured

CONTROLS: tuple[Control, ...] = ("whole", "random", "shuffled")


def cell_of(measured: CellMeasured, resamples: int, seed: int) -> Cell:
    """A cell with its intervals.

    Args:
        measured: of each row.
        resamples: bootstrap samples of the rows.
        seed: of these.
    """
    right = {arm: np.array(values) for arm, values in measured.right.items()}
    return Cell(
        measured=measured,
        iia={
            arm: interval(values, resamples, seed) if arm == "random" else proportion(measured.right[arm])
            for arm, values in right.items()
        },
        probe=proportion(measured.probe),
        over={name: interval(right["das"] - right[name], resamples, seed) for name in CONTROLS},
    )


def proportion(values: Sequence[float]) -> Interval:
    """A share of rows, with Wilson's interval (1927)."""
    # Imported here: scipy's statistics take a second to import.
    from scipy.stats import binomtest

    n, count = len(values), round(sum(values))
    bounds = binomtest(count, n).proportion_ci(LEVEL, method="wilson")
    return Interval(mean=count / n, low=float(bounds.low), high=float(bounds.high), n=n)
