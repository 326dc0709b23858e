"""‖h‖ and ‖Δ‖ of every edited token, measured later and of many edits at once.

An edit of a decoding step is of a few tokens, so that measuring it costs launches and nothing else. What
stood before and after it is copied, in one operation, and measured together with what other sites and later
steps have left. Of a call of many tokens the copy would be large, and it is measured at once. Nothing here
waits for the device until somebody asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy
import torch

#: Numbers in an activation from which on it is measured at once.
AT_ONCE = 2**18
#: Numbers that are kept before they are measured.
KEPT = 2**22

# What can be stacked: rows, tokens, width; type; device.
_Alike = tuple[torch.Size, torch.dtype, torch.device]


@dataclass(frozen=True)
class _Place:
    """One edit of one call: its key, the slot of its first token, and when that was."""

    key: str
    start: int
    order: int


@dataclass
class _Kept:
    """Edits that are alike and not measured yet, each as [2, rows, tokens, width]: before, after."""

    places: list[_Place] = field(default_factory=list)
    pairs: list[torch.Tensor] = field(default_factory=list)


class Norms:
    """The norms of one run."""

    def __init__(self) -> None:
        self._kept: dict[_Alike, _Kept] = {}
        self._kept_numbers = 0
        self._order = 0
        # ‖before‖ and ‖after − before‖ of these places, each [places, rows, tokens].
        self._measured: list[tuple[list[_Place], torch.Tensor, torch.Tensor]] = []
        self._known: dict[str, list[tuple[_Place, numpy.ndarray]]] = {}

    @torch.no_grad()
    def add(self, key: str, before: torch.Tensor, after: torch.Tensor, start: int) -> None:
        """Take notice of an edit, [rows, tokens, width] before and after it, from slot `start` on."""
        self._order += 1
        place, before, after = _Place(key, start, self._order), before.detach(), after.detach()
        if before.numel() > AT_ONCE:
            self._measure([place], before.unsqueeze(0), after.unsqueeze(0))
            return
        kept = self._kept.setdefault((before.shape, before.dtype, before.device), _Kept())
        kept.places.append(place)
        # A copy: whoever is handed the edited activation may go on to write into it.
        kept.pairs.append(torch.stack([before, after]))
        self._kept_numbers += 2 * before.numel()
        if self._kept_numbers > KEPT:
            self._measure_kept()

    def add_measured(self, keys: list[str], norms: torch.Tensor, start: int) -> None:
        """Take over norms [keys, 2, rows, tokens] that somebody else has measured, from slot `start` on."""
        self._order += 1
        places = [_Place(key, start, self._order) for key in keys]
        self._measured.append((places, norms[:, 0], norms[:, 1]))

    def of(self, key: str, slots: int) -> torch.Tensor | None:
        """‖h‖ and ‖Δ‖ at each slot, float64 [2, rows, slots] on the CPU; None if `key` never ran.

        0 where not measured. Of a slot that was passed several times the last pass counts.
        """
        passes = self._all().get(key)
        if passes is None:
            return None
        norms = numpy.zeros((2, passes[0][1].shape[1], slots))
        for place, values in sorted(passes, key=lambda one: one[0].order):
            here = norms[:, :, place.start : place.start + values.shape[2]]
            here[:] = values[:, :, : here.shape[2]]
        return torch.from_numpy(norms)

    @torch.no_grad()
    def _measure_kept(self) -> None:
        for kept in self._kept.values():
            pairs = torch.stack(kept.pairs)
            self._measure(kept.places, pairs[:, 0], pairs[:, 1])
        self._kept.clear()
        self._kept_numbers = 0

    def _measure(self, places: list[_Place], before: torch.Tensor, after: torch.Tensor) -> None:
        """Measure edits [places, rows, tokens, width]."""
        wide = torch.promote_types(before.dtype, torch.float32)
        sizes = torch.linalg.vector_norm(before, dim=-1, dtype=wide)
        changes = torch.linalg.vector_norm(after.to(wide) - before.to(wide), dim=-1)
        self._measured.append((places, sizes, changes))

    def _all(self) -> dict[str, list[tuple[_Place, numpy.ndarray]]]:
        """Key → the passes of its edit, each with its norms [2, rows, tokens]."""
        self._measure_kept()
        for places, sizes, changes in self._measured:
            values = torch.stack([sizes, changes], 1).cpu().double().numpy()
            for place, one in zip(places, values, strict=True):
                self._known.setdefault(place.key, []).append((place, one))
        self._measured.clear()
        return self._known
