"""Sources of models that are no decoder language models: what one call computed, put into another.

A vector's number is its place along its row of the tensor, padding left out; of a module that is called step
by step, its step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from subvene.interventions import Tokens
from subvene.runner.edits.sources import Feed, Read, Reading, SourceError, gathered
from subvene.specs import Positions
from subvene.specs.positions import TokenIndices

# Nothing here is a response.
_NO_END = 2**31 - 1


def is_by_index(rule: Positions) -> bool:
    """Whether a rule needs no prompt: all vectors, or some by their numbers from the start."""
    return rule == "all" or (
        isinstance(rule, TokenIndices) and rule.of == "prompt" and min(rule.indices) >= 0
    )


def placed(index: torch.Tensor, real: torch.Tensor, start: int) -> Tokens:
    """Where the vectors of a call stand, `index` and `real` being [rows, vectors]."""
    end = torch.full((len(index),), _NO_END, device=index.device)
    return Tokens(index=index, real=real, prompt_length=end, start=start)


def read_of(reading: Reading, calls: Sequence[tuple[torch.Tensor, Tokens]]) -> Read:
    """What is read of a module that was called so many times, each [rows, vectors, width].

    Raises:
        SourceError: it did not run, or a row has no such vector.
    """
    if not calls:
        raise SourceError(f"source {reading.source!r}: {reading.place} did not run, so nothing was read")
    index = torch.cat([tokens.index for _, tokens in calls], 1)
    real = torch.cat([tokens.real for _, tokens in calls], 1)
    return gathered(reading, torch.cat([h for h, _ in calls], 1), placed(index, real, 0))


def feed_of(key: str, rule: Positions, read: Read) -> Feed:
    """What goes into which vectors of the base.

    Raises:
        SourceError: naming the row in which not one vector is read that is put into all.
    """
    rows, counts = len(read.counts), read.counts.cpu()
    if read.reading.pair == "broadcast":
        if bool((counts != 1).any()):
            row = int((counts != 1).nonzero()[0])
            raise SourceError(
                f"{read.reading.source!r} at {read.reading.place}: `pair: broadcast` puts one vector of the "
                f"source into every one of the base, and {int(counts[row])} are read in row {row}"
            )
        return Feed(key, rule, read, None)
    places = sorted(rule.indices) if isinstance(rule, TokenIndices) else range(int(counts.max()))
    units = torch.zeros(rows, max(places) + 1, dtype=torch.long)
    units[:, list(places)] = torch.arange(1, len(places) + 1)
    # A number that the source has not is found out by the count below.
    return Feed(key, rule, read, units.where(units <= counts.unsqueeze(1), 0))


def check_counts(feeds: Mapping[str, Feed], edited: Mapping[str, torch.Tensor]) -> None:
    """Refuse a run in which other numbers of vectors were edited than read.

    Args:
        feeds: by key.
        edited: key → Long[rows].

    Raises:
        SourceError: naming the row.
    """
    for key, feed in feeds.items():
        own = edited.get(key)
        if own is None or feed.units is None:
            continue
        counts = feed.read.counts.to(own.device)
        if bool((own != counts).any()):
            row = int((own != counts).nonzero()[0])
            reading = feed.read.reading
            raise SourceError(
                f"row {row}: {int(own[row])} vectors of the base are edited and {int(counts[row])} of the "
                f"source {reading.source!r} at {reading.place} are read; expected as many. `pair: broadcast` "
                "puts one into all"
            )


def inputs_of_source(name: str, given: Any, n_rows: int) -> Mapping[str, Any]:
    """The inputs of a source's call.

    Raises:
        SourceError: none were given, or for another number of rows.
    """
    if not isinstance(given, Mapping):
        raise SourceError(
            f"source {name!r}: expected the inputs of its run, by the names of the model's arguments: "
            f"m(…, sources={{{name!r}: {{…}}}}); this is no decoder language model, and a text alone is none"
        )
    rows = next((len(v) for v in given.values() if isinstance(v, torch.Tensor)), None)
    if rows != n_rows:
        raise SourceError(f"source {name!r}: expected {n_rows} rows, as the base has, found {rows}")
    return given
