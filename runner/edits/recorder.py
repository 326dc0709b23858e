"""Measuring what edits do in a run, for its receipt.

The norms are taken from the activation before and after the edit, in the model's own precision, so an edit
that rounds away in bfloat16 shows as no change. Everything stays on the device until the run is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from subvene.interventions import Tokens
from subvene.interventions.positions import Rule
from subvene.runner.edits.receipt import ROLES, InterventionReceipt, Receipt
from subvene.runner.edits.source_receipt import SourceReceipt, distances
from subvene.runner.edits.sources import Feed


class Recorder:
    """Gathers the measurements of one run without waiting for the device.

    Args:
        strengths: key → strength in force, scalar or [rows].
        slots: how many slots of a row to expect; more are allocated as they come.
        feeds: key → what goes into which tokens of it, of the edits that read from another run.

    Attributes:
        end: what came after so many slots is forgotten; None: nothing is.
    """

    def __init__(
        self, strengths: dict[str, torch.Tensor], slots: int, feeds: Mapping[str, Feed] | None = None
    ) -> None:
        self.strengths = strengths
        self._feeds = feeds or {}
        self._dtypes: dict[str, torch.dtype] = {}
        self.calls = dict.fromkeys(strengths, 0)
        # Name → tokens that were edited in the cache already.
        self.cached: dict[str, int] = {}
        # Keys whose modules have run, whether or not there was anything to edit.
        self.reached: set[str] = set()
        self._capacity = slots
        self._norms: dict[str, torch.Tensor] = {}
        # Key → sum of the strength's factors by slot [rows, slots], and how many factors that are.
        self._factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._masks: dict[Rule, torch.Tensor] = {}
        # Key → what selected its tokens.
        self._rules: dict[str, Rule] = {}
        self._index: torch.Tensor | None = None
        self._prompt: torch.Tensor | None = None
        self._last: Tokens | None = None
        self.collected: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self.end: int | None = None

    def norms(self, key: str) -> torch.Tensor | None:
        """‖h‖ and ‖Δ‖ at each slot, [2, rows, slots], 0 where not measured; None if `key` never ran."""
        return self._norms.get(key)

    @torch.no_grad()
    def record(
        self,
        key: str,
        rule: Rule,
        before: torch.Tensor,
        after: torch.Tensor,
        tokens: Tokens,
        factors: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        """Measure one edit: `before` and `after` are [batch, tokens, width].

        `factors` is what the intervention's `strength_factors` gives.
        """
        start, end = tokens.start, tokens.start + before.shape[1]
        rows = before.shape[0]
        self._rules[key] = rule
        if end > self._capacity:
            self._grow(end)
        if tokens is not self._last:
            self._last = tokens
            self._index = self._slots(self._index, rows, torch.long, tokens.index.device)
            self._index[:, start:end] = tokens.index
            self._prompt = tokens.prompt_length
            for mask in self._masks.values():
                # A slot that is passed again is judged again: the last pass is the one that counts. What an
                # earlier pass had seen beyond (rejected drafts) is no longer part of the sequence.
                mask[:, start:] = False
            self._seen: set[Rule] = set()
        if rule not in self._seen:
            self._seen.add(rule)
            self._masks[rule] = self._slots(self._masks.get(rule), rows, torch.bool, tokens.real.device)
            self._masks[rule][:, start:end] = tokens.mask(rule)
        self._measure(key, before.detach(), after.detach(), start)
        if factors is not None:
            summed, count = factors
            kept = self._factors.get(key)
            buffer = summed.new_zeros(rows, self._capacity) if kept is None else kept[0]
            buffer[:, start:end] = summed
            self._factors[key] = (buffer, count)
        self.calls[key] += 1

    def record_source(self, key: str, base: torch.Tensor, source: torch.Tensor, start: int) -> None:
        """Measure how far a source is from what it is put into, both [batch, tokens, columns]."""
        self._dtypes[key] = base.dtype
        self._measure(_of_source(key), base.detach(), source.detach(), start)

    @torch.no_grad()
    def _measure(self, key: str, before: torch.Tensor, after: torch.Tensor, start: int) -> None:
        """‖before‖ and ‖after − before‖, by slot."""
        rows, end = before.shape[0], start + before.shape[1]
        wide = torch.promote_types(before.dtype, torch.float32)
        norms = self._norms.get(key)
        if norms is None:
            norms = self._norms[key] = torch.zeros(2, rows, self._capacity, dtype=wide, device=before.device)
        here = norms[:, :, start:end]
        torch.linalg.vector_norm(before, dim=-1, dtype=wide, out=here[0])
        torch.linalg.vector_norm(after.to(wide) - before.to(wide), dim=-1, out=here[1])

    def collect(self, key: str, activation: torch.Tensor, mask: torch.Tensor) -> None:
        """Keep an activation [batch, tokens, width] that a reading intervention saw."""
        self.collected.setdefault(key, []).append((activation.detach().clone(), mask))

    def collected_by_row(self) -> dict[str, list[torch.Tensor]]:
        """Key → per row, what a reading intervention kept of the selected tokens, [tokens, width]."""
        found = {}
        for key, calls in self.collected.items():
            activations = torch.cat([activation for activation, _ in calls], 1)
            masks = torch.cat([mask for _, mask in calls], 1)
            found[key] = [row[mask] for row, mask in zip(activations, masks, strict=True)]
        return found

    def selected(self, rule: Rule) -> torch.Tensor | None:
        """Bool[rows, slots] of the tokens that `rule` has selected; None if no edit with it has run."""
        return self._masks.get(rule)

    def truncate(self, slots: int) -> None:
        """Forget what came after the first `slots` slots: drafts that the run ended before accepting."""
        self.end = slots
        for mask in self._masks.values():
            mask[:, slots:] = False

    def finish(self, entries: Iterable[tuple[str, Sequence[str], Sequence[str], Any]]) -> Receipt:
        """The receipt, as (name, keys, sites, one of the interventions) per declared intervention."""
        return Receipt(tuple(self._summary(*entry) for entry in entries))

    def _summary(
        self, name: str, keys: Sequence[str], sites: Sequence[str], edit: Any
    ) -> InterventionReceipt:
        strength = self.strengths[keys[0]]
        feed = self._feeds.get(keys[0])
        mask = self._masks.get(self._rules.get(keys[0], edit.positions))
        common = {
            "name": name,
            "kind": edit.kind,
            "sites": tuple(sites),
            "positions": edit.positions,
            "strengths": tuple(strength.reshape(-1).tolist()),
            "reached": self.reached.issuperset(keys),
            "calls": sum(self.calls[key] for key in keys),
            "cached": self.cached.get(name, 0),
            "expects_change": edit.expects_change,
        }
        measured = [self._norms[key] for key in keys if key in self._norms]
        if mask is None or self._index is None or len(measured) < len(keys):
            rows = 0 if self._index is None else self._index.shape[0]
            return InterventionReceipt(
                **common,
                edited=dict.fromkeys(ROLES, 0),
                changed=0,
                mean_relative=0.0,
                max_relative=0.0,
                first=None,
                last=None,
                rows=rows,
                rows_edited=0,
                mean_strength=None,
                source=None if feed is None else self._source(keys[0], feed, None),
            )
        rows = mask.shape[0]
        on = strength.to(mask.device) != 0
        on = on.expand(rows) if on.ndim == 0 else on.repeat_interleave(rows // on.shape[0])
        mask = mask & on.unsqueeze(1)
        if self._prompt is None:
            role = {"prompt": mask, "cursor": torch.zeros_like(mask), "response": torch.zeros_like(mask)}
        else:
            offset = self._index - (self._prompt.unsqueeze(1) - 1)
            role = {
                "prompt": mask & (offset < 0),
                "cursor": mask & (offset == 0),
                "response": mask & (offset > 0),
            }
        relative, changed = [], []
        for norms in measured:
            here = mask.to(norms.device)
            size, change = (norm[here].cpu().double() for norm in (norms[0], norms[1]))
            relative.append(change / size.clamp_min(1e-12))
            changed.append(int((here & (norms[1] > 0)).sum()))
        ratios = torch.cat(relative)
        positions = self._index[mask]
        return InterventionReceipt(
            **common,
            edited={name: int(tokens.sum()) for name, tokens in role.items()},
            changed=min(changed),
            mean_relative=float(ratios.mean()) if len(ratios) else 0.0,
            max_relative=float(ratios.max()) if len(ratios) else 0.0,
            first=int(positions.min()) if len(positions) else None,
            last=int(positions.max()) if len(positions) else None,
            rows=rows,
            rows_edited=int(mask.any(1).sum()),
            mean_strength=self._mean_strength(keys, mask, strength),
            source=None if feed is None else self._source(keys[0], feed, mask),
        )

    def _source(self, key: str, feed: Any, mask: torch.Tensor | None) -> SourceReceipt:
        """What an edit was fed, `mask` Bool[rows, slots] being the tokens that it went into."""
        read, norms = feed.read, self._norms.get(_of_source(key))
        distance, fed, equal = 0.0, 0, 0
        if norms is not None and mask is not None:
            distance, fed, equal = distances(norms, mask, self._dtypes.get(key))
        return SourceReceipt(
            name=read.reading.source,
            place=read.reading.place,
            positions=read.reading.positions,
            rows=len(read.counts),
            tokens=int(read.counts.sum()),
            first=read.first,
            last=read.last,
            mean_distance=distance,
            rows_fed=fed,
            rows_equal=equal,
        )

    def _mean_strength(self, keys: Sequence[str], mask: torch.Tensor, strength: torch.Tensor) -> float | None:
        """Mean over edited tokens and heads of the strength used; None where no factor was recorded."""
        total, count, rows = 0.0, 0, mask.shape[0]
        for summed, parts in (self._factors[key] for key in keys if key in self._factors):
            scale = strength.to(summed.device, summed.dtype)
            scale = scale.expand(rows) if scale.ndim == 0 else scale.repeat_interleave(rows // len(scale))
            total += float((scale.unsqueeze(1) * summed)[mask.to(summed.device)].sum())
            count += int(parts) * int(mask.sum())
        return total / count if count else None

    def _slots(
        self, buffer: torch.Tensor | None, rows: int, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        return torch.zeros(rows, self._capacity, dtype=dtype, device=device) if buffer is None else buffer

    def _grow(self, needed: int) -> None:
        extra = max(needed, 2 * self._capacity) - self._capacity
        self._capacity += extra
        pad = torch.nn.functional.pad
        self._norms = {key: pad(value, (0, extra)) for key, value in self._norms.items()}
        self._factors = {key: (pad(value, (0, extra)), n) for key, (value, n) in self._factors.items()}
        self._masks = {rule: pad(value, (0, extra)) for rule, value in self._masks.items()}
        self._index = None if self._index is None else pad(self._index, (0, extra))


def _of_source(key: str) -> str:
    return f"{key} source"
