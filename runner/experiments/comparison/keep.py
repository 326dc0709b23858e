"""What a comparison keeps of an arm beside its numbers."""

from __future__ import annotations

from pathlib import Path

from subvene.runner.experiments.comparison.arms import Arm, Arms
from subvene.runner.experiments.comparison.cells import Cell, file_name
from subvene.runner.experiments.results import FitRecord


def keep(cell: Cell, arm: Arm, arms: Arms, output: Path, fits: list[FitRecord]) -> str | None:
    """Save the arm as an artifact that can be loaded and shared, and keep what its fit found."""
    if arm.variant is None or arm.bake:
        return None
    parts = (cell.condition.name, file_name(cell.point), f"seed{cell.seed}", f"fold{cell.fold}")
    kept = f"artifacts/{'-'.join(filter(None, parts))}"
    arms.compiled(arm.variant, arm.fitted).save_pretrained(output / kept)
    if arm.fitted is not None:
        fits.append(
            FitRecord(
                condition=cell.condition.name,
                point=cell.point,
                seed=cell.seed,
                fold=cell.fold,
                artifact=kept,
                provenance=arm.fitted.provenance,
            )
        )
    return kept
