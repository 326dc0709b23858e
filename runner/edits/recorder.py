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
from subvene.runner.edits.norms import Norms
from subvene.runner.edits.passed import Passed
from subvene.runner.edits.receipt import ROLES, InterventionReceipt, Receipt
from subvene.runner.edits.source_receipt import SourceReceipt, distances
from subvene.runner.edits.sources import Feed


class Recorder:
    """Gathers the measurements of one run without waiting for the device.

    Args:
        strengths: key → strength in force, scalar or [rows].
        feeds: key → what goes into which tokens of it, of the edits that read from another run.
    """

    def __init__(self, strengths: dict[str, torch.Tensor], feeds: Mapping[str, Feed] | None = None) -> None:
        self.strengths = strengths
        self._feeds = feeds or {}
        self._dtypes: dict[str, torch.dtype] = {}
        self.calls = dict.fromkeys(strengths, 0)
        # Name → tokens that were edited in the cache already.
        self.cached: dict[str, int] = {}
        # Keys whose modules have run, whether or not there was anything to edit.
        self.reached: set[str] = set()
        self._norms = Norms()
        self._passed = Passed()
        # Key → sums of the strength's factors [rows, tokens] from a slot on, and how many factors these are.
        self._factors: dict[str, tuple[list[tuple[int, torch.Tensor]], torch.Tensor]] = {}
        # Key → what selected its tokens.
        self._rules: dict[str, Rule] = {}
        self.collected: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    @property
    def end(self) -> int | None:
        """What came after so many slots is forgotten; None: nothing is."""
        return self._passed.end

    def norms(self, key: str) -> torch.Tensor | None:
        """‖h‖ and ‖Δ‖ at each slot, [2, rows, slots], 0 where not measured; None if `key` never ran."""
        return self._norms.of(key, self._passed.slots)

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
        self._passed.note(tokens, rule)
        self._rules[key] = rule
        self._norms.add(key, before, after, tokens.start)
        if factors is not None:
            summed, count = factors
            self._factors.setdefault(key, ([], count))[0].append((tokens.start, summed))
        self.calls[key] += 1

    def record_step(self, rules: Mapping[str, Rule], norms: torch.Tensor, tokens: Tokens) -> None:
        """Take over what a step measured itself: key → rule, and their norms [keys, 2, rows, tokens]."""
        for key, rule in rules.items():
            self._passed.note(tokens, rule)
            self._rules[key] = rule
            self.reached.add(key)
            self.calls[key] += 1
        self._norms.add_measured(list(rules), norms, tokens.start)

    def record_source(self, key: str, base: torch.Tensor, source: torch.Tensor, start: int) -> None:
        """Measure how far a source is from what it is put into, both [batch, tokens, columns]."""
        self._dtypes[key] = base.dtype
        self._norms.add(_of_source(key), base, source, start)

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
        return self._passed.selected(rule)

    def truncate(self, slots: int) -> None:
        """Forget what came after the first `slots` slots: drafts that the run ended before accepting."""
        self._passed.end = slots

    def finish(self, entries: Iterable[tuple[str, Sequence[str], Sequence[str], Any]]) -> Receipt:
        """The receipt, as (name, keys, sites, one of the interventions) per declared intervention."""
        return Receipt(tuple(self._summary(*entry) for entry in entries))

    def _summary(
        self, name: str, keys: Sequence[str], sites: Sequence[str], edit: Any
    ) -> InterventionReceipt:
        strength = self.strengths[keys[0]]
        feed = self._feeds.get(keys[0])
        mask = self._passed.selected(self._rules.get(keys[0], edit.positions))
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
        measured = [norms for key in keys if (norms := self.norms(key)) is not None]
        if mask is None or len(measured) < len(keys):
            rows = self._passed.rows
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
        mask, index, prompt = mask.cpu(), self._passed.index(), self._passed.prompt_lengths
        rows = mask.shape[0]
        on = strength.cpu() != 0
        on = on.expand(rows) if on.ndim == 0 else on.repeat_interleave(rows // on.shape[0])
        mask = mask & on.unsqueeze(1)
        if prompt is None:
            role = {"prompt": mask, "cursor": torch.zeros_like(mask), "response": torch.zeros_like(mask)}
        else:
            offset = index - (prompt.cpu().unsqueeze(1) - 1)
            role = {
                "prompt": mask & (offset < 0),
                "cursor": mask & (offset == 0),
                "response": mask & (offset > 0),
            }
        relative, changed = [], []
        for norms in measured:
            size, change = norms[0][mask], norms[1][mask]
            relative.append(change / size.clamp_min(1e-12))
            changed.append(int((change > 0).sum()))
        ratios = torch.cat(relative)
        positions = index[mask]
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
        read, norms = feed.read, self.norms(_of_source(key))
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
        strength = strength.cpu()
        scale = (
            strength.expand(rows) if strength.ndim == 0 else strength.repeat_interleave(rows // len(strength))
        )
        for passes, parts in (self._factors[key] for key in keys if key in self._factors):
            summed = passes[0][1].new_zeros(mask.shape, device="cpu")
            for start, factors in passes:
                # A rejected draft may reach beyond what counts.
                within = max(summed.shape[1] - start, 0)
                summed[:, start : start + factors.shape[1]] = factors[:, :within]
            total += float((scale.unsqueeze(1).to(summed.dtype) * summed)[mask].sum())
            count += int(parts) * int(mask.sum())
        return total / count if count else None


def _of_source(key: str) -> str:
    return f"{key} source"
