"""Runs of pyvene's own classes alone, which are pyvene's business: only their hooks are looked after here."""

from __future__ import annotations

from typing import Any

from subvene.interventions import ActivationIntervention
from subvene.runner.edits.edits_only import EditsOnly
from subvene.runner.edits.pyvene_calls import refuse_mixture


class StockRuns(EditsOnly):
    """The part of pyvene's IntervenableModel that removes hooks: its own, and nobody else's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._handles: list[Any] = []
        super().__init__(*args, **kwargs)

    def _is_ours(self) -> bool:
        refuse_mixture(self.interventions, ActivationIntervention)
        return all(isinstance(edit, ActivationIntervention) for edit in self.interventions.values())

    def _remove_forward_hooks(self) -> None:
        # Of pyvene's own runs; ours keep theirs in their attachment.
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _intervention_setter(self, *args: Any, **kwargs: Any) -> Any:
        handlers = super()._intervention_setter(*args, **kwargs)
        self._handles.extend(handlers.handlers)
        return handlers
