"""What the record of a cache calls edits: by what they are made of and where they act."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from subvene.interventions import ActivationIntervention
from subvene.runner.edits.runs import Entry, Run
from subvene.runner.models.identity import tensors_digest


class EditNames:
    """Names of the edits of one model; two edits of one name do the same.

    `interventions` is, in each method, pyvene's: key → edit. Digests are kept until a tensor changes.
    """

    def __init__(self) -> None:
        self._digests: dict[int, tuple[Any, str]] = {}

    def edits(
        self, entries: Sequence[Entry], interventions: Mapping[str, ActivationIntervention], run: Run
    ) -> dict[str, tuple[Any, torch.Tensor]]:
        """Of each edit in a run, under a name that no other edit has: its position rule and strength."""
        return {
            self._name(entry, site, interventions): (
                run.rule(key, interventions[key].positions),
                run.strengths[key],
            )
            for entry in entries
            for key, site in zip(entry.keys, entry.sites, strict=True)
            if not interventions[key].collects
        }

    def least(
        self, edited: Mapping[str, int], entry: Entry, interventions: Mapping[str, ActivationIntervention]
    ) -> int:
        """Of the counts by name, the least of an entry's sites; 0 where one has none."""
        return min(edited.get(self._name(entry, site, interventions), 0) for site in entry.sites)

    def _name(self, entry: Entry, site: str, interventions: Mapping[str, ActivationIntervention]) -> str:
        edit = interventions[entry.keys[entry.sites.index(site)]]
        return f"{self._digest(edit)}.{entry.name} at {site}"

    def _digest(self, edit: torch.nn.Module) -> str:
        state = {name: t for name, t in edit.state_dict(keep_vars=True).items() if name != "strength"}
        version = tuple((name, id(t), t._version) for name, t in state.items())
        known = self._digests.get(id(edit))
        if known is None or known[0] != version:
            known = (version, tensors_digest({name: t.detach().cpu() for name, t in state.items()}))
            self._digests[id(edit)] = known
        return known[1][:16]
