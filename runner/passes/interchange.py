"""States of rows' sources put into their bases, cell by cell: what trainings and measurements share.

A cell is a layer and a place. Which tokens go where is known before anything runs; bases and sources are
run once. What a pass with an edit computes, `swaps` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

from subvene.runner.edits.compile import place
from subvene.runner.edits.positions import TokenTracker
from subvene.runner.edits.sources import Reading, SourceError, gathered, paired
from subvene.runner.edits.text_positions import DataRow, text_table
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.forked_cache import why_not_forked, why_not_in_one_row
from subvene.runner.passes.swaps import Edit, LayerSwaps, Pairing, Swap, Way, entry_of
from subvene.runner.passes.unedited import Kept, UneditedTexts
from subvene.specs import Positions, Site
from subvene.specs.positions import TEXT_POSITIONS
from subvene.specs.recipes.das import PlaceSpec

# How far two computations of one log-probability may be apart, in nats.
_SAME = {torch.float32: 1e-3, torch.float64: 1e-6}
_SAME_IN_LOW_PRECISION = 0.2
_WORDS: dict[Way, str] = {
    "from_token": "from the edited token on",
    "from_layer": "from the edited layer on",
}


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
        answers: Long[answers], among which the likeliest is looked for; None: all tokens.

    Attributes:
        texts: bases and sources, each text once.
        base: Long[rows], each row's base among them.
        source: Long[rows], its source.
        way: how passes are made.
        note: why they compute more than an edit changes; None where they do not.

    Raises:
        PositionError: a text is not in a row, or twice.
        SourceError: a rule selects nothing in a row, or not as many tokens as the other one.
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
        answers: torch.Tensor | None = None,
    ) -> None:
        self.anatomy, self.site, self.pass_tokens = anatomy, site, pass_tokens
        every = {tuple(text): None for text in (*base, *source)}
        number = {text: i for i, text in enumerate(every)}
        self.texts = UneditedTexts(anatomy, list(every), answers, pad_id=pad_id, pass_tokens=pass_tokens)
        device = self.texts.ids.device
        self.base, self.source = (
            torch.tensor([number[tuple(text)] for text in texts], device=device) for texts in (base, source)
        )
        rules = [(place.base, place.source) for place in places.values()]
        own = self._tracked(self.base, base, [rule for rule, _ in rules], tokenizer, data, "the base")
        other = self._tracked(self.source, source, [rule for _, rule in rules], tokenizer, data, "the source")
        self.pairings = {name: _paired(name, site, one, own, other) for name, one in places.items()}
        self.way: Way = "whole"
        self.note: str | None = None
        self._is_tried = False
        self._ahead: tuple[int, ...] = ()
        self._group: dict[int, Kept] = {}

    def plan(self, layers: Sequence[int]) -> None:
        """Say which layers will be asked for, so that the first run keeps what they need."""
        self._ahead = tuple(layers)

    def said(self, side: Literal["base", "source"]) -> torch.Tensor:
        """Long[rows], the likeliest answer behind each base or source."""
        self._run_ahead()
        return self.texts.answered.among[getattr(self, side)]

    def likeliest(self) -> torch.Tensor:
        """Long[rows], of all tokens, behind each base."""
        self._run_ahead()
        return self.texts.answered.likeliest[self.base]

    def at(self, layers: Sequence[int]) -> Iterator[LayerSwaps]:
        """The cells of some layers, one layer after the other."""
        self._run_ahead()
        for i, layer in enumerate(layers):
            if layer not in self._group:
                self._run(layers[i:])
            made = self._made(layer)
            if not self._is_tried:
                self._try(made)
                made.way = self.way
            yield made

    def _run_ahead(self) -> None:
        if self._ahead:
            ahead, self._ahead = self._ahead, ()
            self._run(ahead)

    def _run(self, layers: Sequence[int]) -> None:
        """Run the texts for as many layers as can be kept at a time; what was kept before is let go."""
        self._group = {}
        group = layers[: self.texts.at_a_time(self.anatomy.sizes.site_width(self.site))]
        entries = list(
            dict.fromkeys(entry_of(self.site, layer, self.anatomy.sizes.n_layers) for layer in group)
        )
        self._group = dict.fromkeys(group, self.texts.run(self.site, group, entries))

    def _made(self, layer: int) -> LayerSwaps:
        kept = self._group[layer]
        states = kept.states[layer]
        if not bool(torch.isfinite(states[self.texts.mask.bool()]).all()):
            raise SourceError(f"{self.site} at layer {layer} is not finite, and its values would be swapped")
        swaps = {name: Swap(one, states, self.base, self.source) for name, one in self.pairings.items()}
        return LayerSwaps(self.texts, self.site, layer, kept, swaps, self.base, self.way)

    def _tracked(
        self,
        texts: torch.Tensor,
        prompts: Sequence[Sequence[int]],
        rules: Sequence[Positions],
        tokenizer: Any,
        data: Sequence[DataRow],
        what: str,
    ) -> TokenTracker:
        mask = self.texts.mask[texts]
        tracker = TokenTracker(mask, self.texts.lengths[texts], generating=False)
        for rule in dict.fromkeys(rules):
            if isinstance(rule, TEXT_POSITIONS):
                tracker.tables[rule] = text_table(rule, tokenizer, prompts, data, what=what).to(mask.device)
        return tracker

    @torch.no_grad()
    def _try(self, made: LayerSwaps) -> None:
        """Find the cheapest way that gives what whole passes give: tried, rather than looked up."""
        self._is_tried = True
        edits: list[tuple[str, Edit]] = [(name, lambda base, source: source) for name in made.swaps]
        rows = torch.arange(min(4, len(self.base)))
        known = made.logits(edits, rows, way="whole").log_softmax(-1)
        notes = []
        ways: tuple[Way, ...] = ("from_token", "from_layer")
        for way in ways:
            reason = self._why_not_from_token(made) if way == "from_token" else None
            if (reason := reason or self._why_other(made, way, edits, rows, known)) is None:
                self.way = way
                break
            notes.append(f"not {_WORDS[way]}: {reason}")
        self.note = "; ".join(notes) or None

    def _why_not_from_token(self, made: LayerSwaps) -> str | None:
        model, slots = self.texts.model, self.texts.ids.shape[1]
        reason = why_not_forked(model) or why_not_in_one_row(model, slots, "text")
        if reason is None and made.keeps_nothing:
            return f"{type(model).__name__}'s keys and values of all texts are not kept"
        return reason

    def _why_other(
        self,
        made: LayerSwaps,
        way: Way,
        edits: Sequence[tuple[str, Edit]],
        rows: torch.Tensor,
        known: torch.Tensor,
    ) -> str | None:
        """How a way gives something else than whole passes; None where it gives the same."""
        try:
            found = made.logits(edits, rows, way=way).log_softmax(-1)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            return f"{type(error).__name__}: {str(error)[:200]}"
        likely = known > known.amax(-1, keepdim=True) - 12  # the tail says nothing of a probability
        off = float(((found - known).abs() * likely).max())
        limit = _SAME.get(self.texts.model.dtype, _SAME_IN_LOW_PRECISION)
        return None if off <= limit else f"log-probabilities are off by {off:.2g} nats"


def _paired(name: str, site: Site, rules: PlaceSpec, own: TokenTracker, other: TokenTracker) -> Pairing:
    """Which tokens go where, by tokens alone, before anything has run."""
    where = place(site, 0)
    reading = Reading("source", where, where, rules.source, rules.pair)
    rows, slots = other.real.shape
    numbers = torch.arange(slots, dtype=torch.float64, device=other.real.device).expand(rows, -1)
    read = gathered(reading, numbers.unsqueeze(-1), other.place(0, rows, slots))
    base = own.place(0, rows, own.slots)
    edited = base.mask(rules.base).any(1)
    if not bool(edited.all()):
        row = int((~edited).nonzero()[0])
        raise SourceError(f"row {row}: no token of the base matches {name!r}, whose rule is {rules.base!r}")
    feed = paired(name, rules.base, read, base, is_open=False)
    units = base.mask(rules.base).long() if feed.units is None else feed.units
    return Pairing(units.to(numbers.device), read.values.squeeze(-1).long())
