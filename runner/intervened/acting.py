"""Whose doing a model's numbers are."""

from __future__ import annotations

from subvene.runner.intervened.loaded import LoadedModel


def acting(m: LoadedModel) -> tuple[str, ...]:
    """Whose doing it is what a model's calls give: its interventions, or what its weights were made into.

    None where it is disabled, or `IntervenedModel.plain` with the weights that were loaded.
    """
    if not m.is_disabled:
        return tuple(entry.name for entry in m.intervenable.entries)
    made_into = m.spec.model.name
    return () if m.spec.interventions or made_into == "plain" else (made_into,)
