"""The strengths that are in force in one run: those that it was given, else those that are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from subvene.interventions import ActivationIntervention
from subvene.runner.edits.runs import Entry

Strength = float | Sequence[float] | torch.Tensor
"""One number, or one for each row."""


def strengths_in_force(
    entries: Sequence[Entry],
    interventions: Mapping[str, ActivationIntervention],
    strengths: Mapping[str, Strength] | None,
    rows: int,
) -> dict[str, torch.Tensor]:
    """Key → strength, scalar or [rows].

    Args:
        entries: the declared interventions.
        interventions: key → edit, with the stored `strength`.
        strengths: entry name → one number, or one per row.
        rows: of the batch.

    Raises:
        ValueError: there is no such intervention, or a strength is no finite number or one for each row.
    """
    in_force = {key: edit.strength for key, edit in interventions.items()}
    by_name = {entry.name: entry for entry in entries}
    for name, value in (strengths or {}).items():
        if name not in by_name:
            known = ", ".join(by_name)
            raise ValueError(f"strengths: no intervention is called {name!r}; there are: {known}")
        try:
            tensor = torch.as_tensor(value, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{name}: a strength must be one number or one per row, found {value!r:.60}"
            ) from error
        for key in by_name[name].keys:
            in_force[key] = tensor.to(in_force[key].device)
    for entry in entries:
        tensor = in_force[entry.keys[0]]
        if tensor.ndim > 1 or (tensor.ndim == 1 and tensor.shape[0] != rows):
            raise ValueError(
                f"{entry.name}: strength has shape {list(tensor.shape)}; expected one number, or one for "
                f"each of the {rows} rows of this batch"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{entry.name}: strength must be finite, found {tensor.tolist()}")
    return in_force
