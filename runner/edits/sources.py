"""What the interventions of a spec read from the runs of sources, and whom it reaches in a run.

How a source is run is `source_runs`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pydantic import JsonValue

from subvene.interventions import Tokens
from subvene.interventions.positions import Paired, Rule, from_table
from subvene.runner.edits.receipt import InterventionReceipt
from subvene.specs import Positions, SourceRef, SourceSpec, SubveneError
from subvene.specs.sources import Pair


class SourceError(SubveneError, ValueError):
    """A source cannot be run, or what was read of it does not fit the base."""


@dataclass(frozen=True)
class Reading:
    """What one edit reads from the run of a source.

    Attributes:
        source: the source's name.
        component: pyvene's, of the module that is read.
        place: the same in words, `site[layer]` or the module's path.
        positions: the rule for the source's tokens.
        pair: how tokens of the two runs are paired.
        columns: of the tensor that is read; None: all of them.
    """

    source: str
    component: str
    place: str
    positions: Positions
    pair: Pair
    columns: tuple[int, ...] | None = None

    @classmethod
    def of(cls, ref: SourceRef, component: str, place: str, **fields: Any) -> Reading:
        """What a spec declares, at a place of the model."""
        return cls(ref.origin, component, place, pair=ref.pair, **fields)


@dataclass(frozen=True)
class Declared:
    """The sources of a compiled spec.

    Attributes:
        sources: by name.
        readings: pyvene's key of an edit (before that is known: its place among the representations) → what
            it reads.
        acts_on: name of an entry → the sources whose runs it acts on; an entry that is not here acts on the
            base.
    """

    sources: Mapping[str, SourceSpec] = field(default_factory=dict)
    readings: Mapping[Any, Reading] = field(default_factory=dict)
    acts_on: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def by_key(self, keys: Sequence[str]) -> Declared:
        """The same with the readings by pyvene's keys, given in the order of the representations."""
        return replace(self, readings={keys[i]: reading for i, reading in self.readings.items()})


@dataclass(frozen=True)
class Read:
    """What was read of a source for one edit.

    Attributes:
        reading: what was asked for.
        values: [rows, units, columns], filled up with zeros.
        counts: Long[rows], units of each row.
        first: smallest 0-based position that was read in any row; None if none was.
        last: largest such position.
    """

    reading: Reading
    values: torch.Tensor
    counts: torch.Tensor
    first: int | None
    last: int | None


@dataclass(frozen=True, eq=False)
class Feed:
    """What one edit is given in a run: values, and the tokens of the base that they go into.

    Attributes:
        key: of the edit.
        rule: what selects the tokens of the base that have a partner.
        read: what was read.
        units: Long[rows, positions], which unit goes into the token at each position plus 1, 0 for none; None
            where the one unit goes into all.
    """

    key: str
    rule: Rule
    read: Read
    units: torch.Tensor | None

    def at(self, tokens: Tokens, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Selected tokens of a call, Bool[batch, tokens], and the source there [batch, tokens, columns]."""
        mask = tokens.mask(self.rule, h.device)
        values = self.read.values.to(h.device)
        repeat = len(h) // len(values)  # beams, several sequences a prompt
        values = values if repeat == 1 else values.repeat_interleave(repeat, 0)
        if self.units is None:
            return mask, values[:, :1].expand(-1, h.shape[1], -1)
        units = self.units if repeat == 1 else self.units.repeat_interleave(repeat, 0)
        unit = (from_table(units.to(h.device), tokens.index.to(h.device)) - 1).clamp_min(0)
        return mask, values.gather(1, unit.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


@dataclass(frozen=True)
class Fed:
    """What a run is given by the runs of its sources.

    Attributes:
        feeds: key of an edit → what goes into which tokens.
        receipts: name of an entry that acts on sources → what it did there.
    """

    feeds: Mapping[str, Feed] = field(default_factory=dict)
    receipts: Mapping[str, InterventionReceipt] = field(default_factory=dict)


def paired(key: str, rule: Positions, read: Read, base: Tokens, *, is_open: bool) -> Feed:
    """Pair the tokens that were read with those of the base.

    Args:
        key: of the edit.
        rule: of the edit, for the base's tokens.
        read: what was read.
        base: all that is known of the base's tokens, [rows, slots].
        is_open: whether the rule selects tokens that are still to be generated.

    Raises:
        SourceError: naming the row in which the counts do not match.
    """
    reading = read.reading
    whom = f"{reading.source!r} at {reading.place}"
    if reading.pair == "broadcast":
        if bool((read.counts != 1).any()):
            row = int((read.counts != 1).nonzero()[0])
            raise SourceError(
                f"{whom}: `pair: broadcast` puts one token of the source into every token of the base, and "
                f"the source's rule selects {int(read.counts[row])} in row {row}"
            )
        return Feed(key, rule, read, None)
    if is_open:
        raise SourceError(
            f"{whom}: positions {rule!r} go on with every token that is generated, and the source has no "
            "more; declare tokens of the prompt, or `pair: broadcast` with one token of the source"
        )
    mask, counts = base.mask(rule).cpu(), read.counts.cpu()
    own = mask.sum(1)
    _refuse_counts(own, counts, reading, whom)
    shared = torch.minimum(own, counts)
    # Of each selected token its number among the row's selected ones, from 0.
    number = mask.long().cumsum(1) - 1
    source = number
    if reading.pair == "last":
        number = number - (own - shared).unsqueeze(1)
        source = number + (counts - shared).unsqueeze(1)
    partnered = mask & (number >= 0) & (number < shared.unsqueeze(1))
    units = torch.zeros_like(number)
    rows, slots = partnered.nonzero(as_tuple=True)
    units[rows, base.index.cpu()[rows, slots]] = source[rows, slots] + 1
    return Feed(key, Paired(key, rule), read, units)


def _refuse_counts(own: torch.Tensor, counts: torch.Tensor, reading: Reading, whom: str) -> None:
    differs = own != counts if reading.pair == "equal" else torch.zeros_like(own, dtype=torch.bool)
    if bool(differs.any()):
        row = int(differs.nonzero()[0])
        raise SourceError(
            f"row {row}: {int(own[row])} tokens of the base are edited and {int(counts[row])} of the source "
            f"{whom} are read; expected as many. `pair: first`, `last` or `broadcast` pairs others"
        )


def refuse_unfed(key: str, declared: Declared, fed: Fed) -> None:
    """Refuse a run in which an edit would be given nothing of the source that it reads.

    Raises:
        SourceError: saying which calls run the sources.
    """
    reading = declared.readings.get(key)
    if reading is not None and key not in fed.feeds:
        raise SourceError(
            f"{key} takes what the run of {reading.source!r} computed, and this call cannot run sources: "
            "they are run by m.generate, m.generate_ids, m(…) with whole sequences, and by `generate` inside "
            "`with m.attached()`"
        )


def gathered(reading: Reading, tensor: torch.Tensor, tokens: Tokens) -> Read:
    """The units of a tensor [rows, slots, width] that a reading asks for.

    Raises:
        SourceError: naming the row in which the rule selects nothing, or that is not finite.
    """
    mask = tokens.mask(reading.positions, tensor.device)
    counts = mask.sum(1)
    if bool((counts == 0).any()):
        row = int((counts == 0).nonzero()[0])
        raise SourceError(
            f"row {row}: no token of the source {reading.source!r} matches its positions "
            f"{reading.positions!r}"
        )
    if reading.columns is not None:
        tensor = tensor[..., list(reading.columns)]
    values = torch.nn.utils.rnn.pad_sequence(
        [row[keep] for row, keep in zip(tensor, mask, strict=True)], batch_first=True
    )
    if not bool(torch.isfinite(values).all()):
        row = int((~torch.isfinite(values)).flatten(1).any(1).nonzero()[0])
        raise SourceError(
            f"row {row}: the source {reading.source!r} at {reading.place} is not finite; its values would be "
            "put into the base"
        )
    positions = tokens.index.to(mask.device)[mask]
    return Read(reading, values, counts, int(positions.min()), int(positions.max()))


SourceGiven = str | Sequence[str] | Sequence[Mapping[str, JsonValue]] | Mapping[str, torch.Tensor]
"""What a call gives for a source: a text, a conversation, one for each row, or token ids and their mask."""


def inputs_by_name(given: Any, names: Sequence[str]) -> dict[str, SourceGiven]:
    """Sources of a call by name: of a mapping by name, or of a list in the file's order, as pyvene's has it.

    Raises:
        SourceError: a name that is not declared, or another number of sources.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        if unknown := [name for name in given if name not in names]:
            known = ", ".join(names) or "none"
            raise SourceError(f"sources: no source is called {unknown[0]!r}; declared are: {known}")
        return dict(given)
    if not isinstance(given, list | tuple) or len(given) != len(names):
        raise SourceError(
            f"sources: expected a mapping by name, or a list of {len(names)} in the order of the file "
            f"({', '.join(names) or 'none'}), found {type(given).__name__}"
            + (f" of {len(given)}" if isinstance(given, list | tuple) else "")
        )
    return {name: value for name, value in zip(names, given, strict=True) if value is not None}
