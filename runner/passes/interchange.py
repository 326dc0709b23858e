"""States of rows' sources put into their bases, cell by cell: what trainings and measurements share.

A cell is a layer and a place. Bases and sources are run once; what reaches the layer is kept, and a pass with
an edit begins there. Cells of a layer are rows of one batch. Rows are padded on the right, where no token of
a causal model looks.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from subvene.runner.data.text import Batch, pad
from subvene.runner.edits.compile import place
from subvene.runner.edits.positions import TokenTracker
from subvene.runner.edits.sources import Reading, gathered, paired
from subvene.runner.edits.text_positions import DataRow, text_table
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.kept import at_site
from subvene.runner.passes.restart import beginning_at, logits_at
from subvene.specs import Positions, Site
from subvene.specs.positions import TEXT_POSITIONS
from subvene.specs.recipes.das import PlaceSpec

Edit = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From vectors of the base and of the source, [n, width] each, to what is put in the base's place."""
# What is kept of the runs at a time.
_KEPT_BYTES = 2**30
# How far two computations of one log-probability may be apart, in nats.
_SAME = {torch.float32: 1e-3, torch.float64: 1e-6}
_SAME_IN_LOW_PRECISION = 0.2


@dataclass(frozen=True, eq=False)
class Swap:
    """What one cell swaps.

    Attributes:
        units: Long[rows, slots], which vector of the source goes into a token of the base, plus 1; 0: none.
        values: of the source, [rows, units, width].
        own: of the base, [rows, slots, width].
    """

    units: torch.Tensor
    values: torch.Tensor
    own: torch.Tensor

    def vectors(self, rows: torch.Tensor, sources: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where vectors of some rows are put, Bool[rows, slots], and the sources' vectors in their order."""
        units = self.units[rows]
        mask = units > 0
        number = torch.arange(len(rows), device=units.device).unsqueeze(1).expand_as(units)[mask]
        return mask, self.values[sources[number], units[mask] - 1]

    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean vector of each row, of the base's tokens and of the source's, [rows, width] each."""
        rows = torch.arange(len(self.units), device=self.units.device)
        mask, source = self.vectors(rows, rows)
        number = rows.unsqueeze(1).expand_as(mask)[mask]
        both = torch.cat([self.own[mask], source], dim=-1).float()
        sums = both.new_zeros(len(rows), both.shape[-1]).index_add_(0, number, both)
        base, other = (sums / mask.sum(1, keepdim=True)).chunk(2, dim=-1)
        return base, other

    @property
    def counts(self) -> torch.Tensor:
        """Long[rows], how many vectors of its source each row needs."""
        return self.units.amax(1)

    @property
    def equal(self) -> float:
        """The share of rows whose source has what the base has: nothing is swapped there."""
        base, source = self.means()
        return float((base == source).all(-1).float().mean())


class LayerSwaps:
    """The cells of one layer.

    Args:
        runs: whose rows these are.
        layer: 0-based.
        entry: the layer at which passes begin; None: they are whole.
        hidden: what reaches it, [rows, slots, width].
        swaps: by place.

    Attributes:
        computed: tokens × blocks that have been passed.
    """

    def __init__(
        self,
        runs: Interchanges,
        layer: int,
        entry: int | None,
        hidden: torch.Tensor,
        swaps: Mapping[str, Swap],
    ) -> None:
        self.runs, self.layer, self.swaps = runs, layer, swaps
        self._entry, self._hidden = entry, hidden
        self.computed = 0

    def logits(
        self,
        edits: Sequence[tuple[str, Edit]],
        rows: torch.Tensor,
        sources: torch.Tensor | None = None,
        *,
        whole: bool = False,
    ) -> torch.Tensor:
        """The logits behind each row, [edits, rows, vocabulary]; gradients reach what the edits hold.

        Args:
            edits: places with what is done there, each in rows of its own.
            rows: Long[rows], of the data.
            sources: Long[rows], rows whose sources are put in; None: each row's own.
            whole: pass whole texts from the embeddings on.
        """
        runs, device = self.runs, self._hidden.device
        rows = rows.to(device)
        sources = rows if sources is None else sources.to(device)
        ids, mask = (tensor[rows] for tensor in (runs.base.input_ids, runs.base.attention_mask))
        slots = int(mask.sum(1).max())
        ids, mask = ids[:, :slots].repeat(len(edits), 1), mask[:, :slots].repeat(len(edits), 1)
        ends = torch.arange(len(ids), device=device) * slots + mask.sum(1) - 1

        def change(activation: torch.Tensor) -> torch.Tensor:
            parts = activation.split(len(rows))
            return torch.cat(
                [self._edited(part, *edit, rows, sources) for part, edit in zip(parts, edits, strict=True)]
            )

        entry = None if whole else self._entry
        with contextlib.ExitStack() as stack:
            if entry is not None:
                hidden = self._hidden[rows][:, :slots].repeat(len(edits), 1, 1)
                if runs.site == "block_output" and self.layer < entry:
                    hidden = change(hidden)
                else:
                    stack.enter_context(at_site(runs.anatomy, runs.site, self.layer, change))
                tuples = {"returns_tuple": runs.returns_tuple}
                stack.enter_context(beginning_at(runs.anatomy, entry, hidden, **tuples))
            else:
                stack.enter_context(at_site(runs.anatomy, runs.site, self.layer, change))
            found = logits_at(runs.model, ends, input_ids=ids, attention_mask=mask, use_cache=False)
        self.computed += ids.numel() * (runs.anatomy.sizes.n_layers - (entry or 0))
        return found.float().unflatten(0, (len(edits), len(rows)))

    def _edited(
        self,
        activation: torch.Tensor,
        name: str,
        edit: Edit,
        rows: torch.Tensor,
        sources: torch.Tensor,
    ) -> torch.Tensor:
        mask, source = self.swaps[name].vectors(rows, sources)
        mask = mask[:, : activation.shape[1]]
        wide = torch.promote_types(activation.dtype, torch.float32)
        edited = edit(activation[mask].to(wide), source.to(wide)).to(activation.dtype)
        new = activation.clone()
        new[mask] = edited
        return new


class Interchanges:
    """Bases and sources of some rows, and what their runs leave at the cells.

    Args:
        anatomy: of the model, which is in evaluation mode.
        tokenizer: finds texts in token ids.
        base: token ids of each row's base.
        source: token ids of each row's source.
        data: the columns of each row.
        site: where states are swapped.
        places: by name, the tokens.
        pad_id: any token id.
        pass_tokens: most tokens of a pass, padding included.

    Attributes:
        returns_tuple: whether the model's blocks return a tuple.
        note: why passes are whole; None where they begin at their layer.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        tokenizer: Any,
        base: Sequence[Sequence[int]],
        source: Sequence[Sequence[int]],
        data: Sequence[DataRow],
        *,
        site: Site,
        places: Mapping[str, PlaceSpec],
        pad_id: int,
        pass_tokens: int,
    ) -> None:
        self.anatomy, self.site, self.places = anatomy, site, places
        self.model = cast(Any, anatomy.model)
        self.pass_tokens = pass_tokens
        device = self.model.device
        self.base, self.source = (
            pad(rows, [len(row) for row in rows], pad_id, "right").to(device) for rows in (base, source)
        )
        rules = [(place.base, place.source) for place in places.values()]
        self._base = _tracked(self.base, base, [own for own, _ in rules], tokenizer, data, "the base")
        self._source = _tracked(
            self.source, source, [other for _, other in rules], tokenizer, data, "the source"
        )
        self.returns_tuple = False
        self.note: str | None = None
        self._restarts: bool | None = None

    @functools.cached_property
    def own(self) -> torch.Tensor:
        """The logits behind each base, [rows, vocabulary]."""
        return self._run(self.base, [], [])[2]

    @functools.cached_property
    def of_source(self) -> torch.Tensor:
        """The logits behind each source, [rows, vocabulary]."""
        return self._run(self.source, [], [])[2]

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.base.input_ids)

    def at(self, layers: Sequence[int]) -> Iterator[LayerSwaps]:
        """The cells of some layers, one layer after the other.

        Raises:
            SourceError: a rule selects nothing in a row, or not as many tokens as the other one.
        """
        each = 3 * self.rows * max(self.base.input_ids.shape[1], self.source.input_ids.shape[1])
        width = max(self.anatomy.sizes.width, self.anatomy.sizes.site_width(self.site))
        at_a_time = max(1, _KEPT_BYTES // (each * width * self.model.dtype.itemsize))
        for i in range(0, len(layers), at_a_time):
            yield from self._of_group(layers[i : i + at_a_time])

    def _of_group(self, layers: Sequence[int]) -> Iterator[LayerSwaps]:
        entries = {layer: self._entry(layer) for layer in layers}
        inputs, own, _ = self._run(self.base, layers, list(entries.values()))
        _, other, _ = self._run(self.source, layers, [])
        for layer in layers:
            swaps = {
                name: self._swap(name, rules, layer, own[layer], other[layer])
                for name, rules in self.places.items()
            }
            made = LayerSwaps(self, layer, entries[layer], inputs[entries[layer]], swaps)
            if self._restarts is None and entries[layer] > 0:
                self._restarts = self._tried(made)
            if self._restarts is False:
                made = LayerSwaps(self, layer, None, inputs[entries[layer]], swaps)
            yield made

    def _entry(self, layer: int) -> int:
        return min(layer + (self.site == "block_output"), self.anatomy.sizes.n_layers - 1)

    def _swap(self, name: str, rules: PlaceSpec, layer: int, own: torch.Tensor, other: torch.Tensor) -> Swap:
        where = place(self.site, layer)
        reading = Reading("source", where, where, rules.source, rules.pair)
        read = gathered(reading, other, self._source.place(0, self.rows, self._source.slots))
        base = self._base.place(0, self.rows, self._base.slots)
        feed = paired(name, rules.base, read, base, is_open=False)
        units = base.mask(rules.base).long() if feed.units is None else feed.units
        return Swap(units.to(own.device), read.values, own)

    @torch.no_grad()
    def _run(
        self, batch: Batch, layers: Sequence[int], entries: Sequence[int]
    ) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor], torch.Tensor]:
        """What reaches some blocks, and what the site holds at some layers: [rows, slots, width] by layer."""
        rows, slots = batch.input_ids.shape
        at_a_time = max(1, self.pass_tokens // slots)
        inputs: dict[int, list[torch.Tensor]] = {entry: [] for entry in entries}
        states: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
        logits = []
        with contextlib.ExitStack() as stack:
            for entry, kept in inputs.items():
                block = self.anatomy.blocks[entry]
                stack.callback(block.register_forward_pre_hook(_entering(kept), with_kwargs=True).remove)
            for layer, kept in states.items():
                stack.enter_context(at_site(self.anatomy, self.site, layer, _taking(kept)))
            stack.callback(self.anatomy.blocks[0].register_forward_hook(self._see).remove)
            for first in range(0, rows, at_a_time):
                ids, mask = (
                    tensor[first : first + at_a_time] for tensor in (batch.input_ids, batch.attention_mask)
                )
                ends = torch.arange(len(ids), device=ids.device) * slots + mask.sum(1) - 1
                logits.append(
                    logits_at(self.model, ends, input_ids=ids, attention_mask=mask, use_cache=False).float()
                )
        return (
            {entry: torch.cat(kept) for entry, kept in inputs.items()},
            {layer: torch.cat(kept) for layer, kept in states.items()},
            torch.cat(logits),
        )

    def _see(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        self.returns_tuple = isinstance(output, tuple)

    @torch.no_grad()
    def _tried(self, made: LayerSwaps) -> bool:
        """Whether passes that begin at a layer give what whole ones give: tried, rather than looked up."""
        edits: list[tuple[str, Edit]] = [(name, lambda base, source: source) for name in made.swaps]
        rows = torch.arange(min(4, self.rows))
        known = made.logits(edits, rows, whole=True).log_softmax(-1)
        likely = known > known.amax(-1, keepdim=True) - 12  # the tail says nothing of a probability
        limit = _SAME.get(self.model.dtype, _SAME_IN_LOW_PRECISION)
        try:
            found = made.logits(edits, rows).log_softmax(-1)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            self.note = f"not restarted: {type(error).__name__}: {str(error)[:200]}"
            return False
        off = float(((found - known).abs() * likely).max())
        if off > limit:
            self.note = f"not restarted: log-probabilities are off by {off:.2g} nats"
        return off <= limit


def _tracked(
    batch: Batch,
    prompts: Sequence[Sequence[int]],
    rules: Sequence[Positions],
    tokenizer: Any,
    data: Sequence[DataRow],
    what: str,
) -> TokenTracker:
    tracker = TokenTracker(batch.attention_mask, batch.prompt_lengths, generating=False)
    for rule in dict.fromkeys(rules):
        if isinstance(rule, TEXT_POSITIONS):
            table = text_table(rule, tokenizer, prompts, data, what=what)
            tracker.tables[rule] = table.to(batch.input_ids.device)
    return tracker


def _entering(kept: list[torch.Tensor]) -> Callable[..., None]:
    def hook(_module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        kept.append((args[0] if args else kwargs["hidden_states"]).clone())

    return hook


def _taking(kept: list[torch.Tensor]) -> Callable[[torch.Tensor], None]:
    def take(activation: torch.Tensor) -> None:
        kept.append(activation.clone())

    return take
