"""Collecting activations of many texts at a site, for every recipe that needs those of single texts.

One row is the mean over a span of tokens: the last token, the last n, a response, or (as many rows as
tokens) every token. Rows go to disk in shards; a collection that was killed goes on where it stopped, and
one that is there already is read. A prefix that several texts share is encoded once, and its keys and values
are forked across the texts' ends.

What is collected depends on nothing but the model and the texts of the call, bit for bit: texts are batched
within their shard, and shards are cut by the texts alone.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from subvene.runner.activations import forward_reading
from subvene.runner.anatomy import Anatomy, text_config
from subvene.runner.identity import model_sha256
from subvene.runner.progress import track
from subvene.runner.shards import Index, Store, rows_per_shard
from subvene.runner.text import TextError, pad
from subvene.specs import Site

log = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20
# Changes whenever the same texts are cut into other shards or batches, and so to other rounding.
_PLAN = 1
# What a forward pass costs beside its tokens, in tokens: below it, padding is cheaper than another pass.
_PASS_ON_CPU, _PASS = 24, 4096
# How far apart two activations of one token may be, in relation to their norm, that were computed in other
# batches. A cache that does not carry what a prefix said is off by about 1.
_SAME = {torch.float32: 1e-3, torch.float64: 1e-6}
_SAME_IN_LOW_PRECISION = 0.1
_FORKED = (DynamicLayer, DynamicSlidingWindowLayer)


@dataclass(frozen=True)
class Passage:
    """A tokenised text and what of it is read.

    Attributes:
        ids: token ids.
        spans: (first token, one past the last) of each row that it gives; a row is the mean over its span.
        shared: how many tokens at its start other passages begin with as well; they are encoded once for
            neighbouring passages that agree in them.
    """

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    shared: int = 0


def last(end: int, count: int = 1, start: int = 0) -> tuple[int, int]:
    """The span of the last `count` tokens before `end`, fewer if the text begins at `start` only."""
    return max(start, end - count), end


def every_token(start: int, end: int) -> tuple[tuple[int, int], ...]:
    """A span for each token from `start` to before `end`."""
    return tuple((token, token + 1) for token in range(start, end))


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all of these begin with."""
    low, high = min(rows), max(rows)  # in lexical order, what the outermost two share all between do
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(low, high, strict=False)))


def shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """What `Passage.shared` is for these: what all of them begin with, a token of each being left over."""
    return min(common_prefix(rows), min(map(len, rows)) - 1) if len(rows) > 1 else 0


@dataclass(frozen=True)
class Collected:
    """Activations of passages.

    Attributes:
        store: the rows: passage by passage, in each the spans in their order.
        first_rows: row of each passage's first span.
        tokens: how many tokens went through the model, padding included; 0 if all was there already.
    """

    store: Store
    first_rows: tuple[int, ...]
    tokens: int

    @property
    def forked(self) -> bool:
        """Whether shared prefixes were encoded once."""
        return self.store.index.forked

    @property
    def note(self) -> str | None:
        """Why shared prefixes were not encoded once, where there were any."""
        return self.store.index.note

    @property
    def content(self) -> str:
        """Hash of all that the rows depend on."""
        return self.store.index.content

    def read(
        self, layer: int, rows: torch.Tensor | None = None, columns: slice | None = None
    ) -> torch.Tensor:
        """As `Store.read`: float32 [rows, columns] of one layer."""
        return self.store.read(layer, rows, columns)


def collect(
    anatomy: Anatomy,
    site: Site,
    layers: Sequence[int],
    passages: Sequence[Passage],
    folder: Path,
    *,
    pad_id: int,
    batch_size: int,
    identity: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    description: str = "reading activations",
) -> Collected:
    """The activations of passages, read from the folder where they are there and computed where they are not.

    Args:
        anatomy: of the model to read.
        site: one of DESIGN's sites.
        layers: 0-based block indices; the pass stops at the last.
        passages: what is read.
        folder: where collections are kept, each in a folder of its own that is named by its content.
        pad_id: any token id; padding stands behind the tokens that are read.
        batch_size: texts per forward pass.
        identity: the model's (`model_sha256`), if it is known already.
        shard_bytes: about how large a shard is; this much is held in memory, and lost by a kill.
        description: what the progress bar says.

    Raises:
        TextError: a passage holds no token, is longer than the model can read, or a span is not within it.
    """
    _check(passages, anatomy)
    layers = tuple(sorted(set(layers)))
    width = anatomy.sizes.site_width(site)
    content = _content(
        identity or model_sha256(anatomy.model), site, layers, passages, batch_size, shard_bytes
    )
    target = folder / content[:24]
    target.mkdir(parents=True, exist_ok=True)
    reader = _Reader(anatomy, site, layers, width, pad_id, batch_size)
    with FileLock(target / ".lock"):
        store = Store.open(target, content)
        forked, note = reader.can_fork(passages) if store is None else (store.index.forked, None)
        shards = _cut(passages, rows_per_shard(layers, width, shard_bytes), forked)
        if store is None:
            rows = tuple(sum(len(passages[i].spans) for group in shard for i in group) for shard in shards)
            store = Store.create(target, Index(content, site, layers, width, rows, forked, note))
            if note is not None:
                log.warning("%s: shared prefixes are encoded again for every text: %s", site, note)
        store.clean()
        missing = [i for i in range(len(shards)) if not store.has(i)]
        device = anatomy.model.device.type
        plans = {
            i: _plan(passages, shards[i], batch_size, _PASS_ON_CPU if device == "cpu" else _PASS)
            for i in missing
        }
        steps = track([(i, step) for i, plan in plans.items() for step in plan], description)
        for shard, work in itertools.groupby(steps, lambda pair: pair[0]):
            order = [i for group in shards[shard] for i in group]
            store.put(shard, reader.rows(passages, order, (step for _, step in work)))
    order = [i for shard in shards for group in shard for i in group]
    first_rows = [0] * len(passages)
    for i, row in zip(order, _first_rows(passages, order), strict=False):
        first_rows[i] = row
    return Collected(store, tuple(first_rows), reader.tokens)


@dataclass(frozen=True)
class _Step:
    """Passages that are read together.

    Attributes:
        groups: indices of the passages of each group.
        prefix: so many tokens at the start of each group are encoded once; 0: none.
        batches: indices of the passages whose rest shares a pass.
    """

    groups: tuple[tuple[int, ...], ...]
    prefix: int
    batches: tuple[tuple[int, ...], ...]


class _Reader:
    """Runs the passes of a collection."""

    def __init__(
        self,
        anatomy: Anatomy,
        site: str,
        layers: Sequence[int],
        width: int,
        pad_id: int,
        batch_size: int,
    ) -> None:
        self._anatomy, self._site, self._layers, self._width = anatomy, site, layers, width
        self._pad_id, self._batch_size = pad_id, batch_size
        self.tokens = 0

    def rows(
        self, passages: Sequence[Passage], order: Sequence[int], steps: Iterator[_Step]
    ) -> dict[int, torch.Tensor]:
        """Layer → float32 [spans of the passages in this order, width]."""
        *first, count = _first_rows(passages, order)
        first_rows = dict(zip(order, first, strict=True))
        sums = {layer: torch.zeros(count, self._width) for layer in self._layers}
        for step in steps:
            cache = None
            if step.prefix:
                # 1. Each group's prefix, once.
                cache = _new_cache(self._anatomy)
                picks = [
                    [pick for i in group for pick in _picks(passages[i], first_rows[i], 0, step.prefix)]
                    for group in step.groups
                ]
                self._pass([passages[g[0]].ids[: step.prefix] for g in step.groups], picks, sums, cache)
            # 2. The rest of every text, under its group's keys and values.
            group_of = {i: g for g, group in enumerate(step.groups) for i in group}
            for batch in step.batches:
                rest = [passages[i].ids[step.prefix :] for i in batch]
                picks = [
                    list(_picks(passages[i], first_rows[i], step.prefix, len(passages[i].ids))) for i in batch
                ]
                fork = None if cache is None else _fork(cache, [group_of[i] for i in batch])
                self._pass(rest, picks, sums, fork)
        spans = [end - start for i in order for start, end in passages[i].spans]
        lengths = torch.tensor(spans, dtype=torch.float32).unsqueeze(1)
        return {layer: total.div_(lengths) for layer, total in sums.items()}

    def can_fork(self, passages: Sequence[Passage]) -> tuple[bool, str | None]:
        """Whether this model's cache can be forked, tried on one group of the passages; if not, why.

        Tried rather than looked up, since what a cache holds is every architecture's own affair: a passage
        that is read behind a forked prefix must be what it is when it is read whole.
        """
        groups = [group for group in _groups(passages) if _is_shared(group, passages)]
        if not groups:
            return False, None
        group = max(groups, key=lambda g: max(len(passages[i].ids) for i in g))[:2]
        pair = [Passage(p.ids, (last(len(p.ids)),)) for p in (passages[i] for i in group)]
        whole = self.rows(pair, (0, 1), iter([_Step(((0,), (1,)), 0, ((0,), (1,)))]))
        try:
            step = _Step(((0, 1),), passages[group[0]].shared, ((0,), (1,)))
            forked = self.rows(pair, (0, 1), iter([step]))
        except Exception as error:  # modelling code that has no such cache stops with whatever it trips over
            return False, f"the cache cannot be forked ({type(error).__name__}: {str(error)[:200]})"
        dtype = next(self._anatomy.model.parameters()).dtype
        limit = _SAME.get(dtype, _SAME_IN_LOW_PRECISION)
        for layer in self._layers:
            difference = (whole[layer] - forked[layer]).norm(dim=1) / whole[layer].norm(dim=1).clamp_min(1e-6)
            if not bool((difference <= limit).all()):
                return False, (
                    f"behind a forked cache, {self._site}[{layer}] differs by {float(difference.max()):.2g} "
                    "of its norm"
                )
        return True, None

    def _pass(
        self,
        rows: Sequence[Sequence[int]],
        picks: Sequence[Sequence[tuple[int, int]]],
        sums: dict[int, torch.Tensor],
        cache: Any,
    ) -> None:
        """One forward pass; `picks` are, for each of its rows, (token, row of `sums` that it is added to)."""
        batch = pad(rows, [len(row) for row in rows], self._pad_id, "right")
        self.tokens += batch.input_ids.numel()
        flat = [(row, token, to) for row, some in enumerate(picks) for token, to in some]
        row_of, token_of, to = (torch.tensor([pick[k] for pick in flat], dtype=torch.long) for k in range(3))

        def read(layer: int, activation: torch.Tensor) -> None:
            if flat:
                h = activation.reshape(*batch.input_ids.shape, -1)
                found = h[row_of.to(h.device), token_of.to(h.device)].float().cpu()
                # On the CPU, where the order of the additions is always the same.
                sums[layer].index_add_(0, to, found)

        forward_reading(self._anatomy, self._site, self._layers, batch, read, cache=cache)


def _check(passages: Sequence[Passage], anatomy: Anatomy) -> None:
    longest = getattr(text_config(anatomy.model.config), "max_position_embeddings", None)
    for i, passage in enumerate(passages):
        n = len(passage.ids)
        if not n:
            raise TextError(f"passage {i} holds no token")
        if longest is not None and n > longest:
            raise TextError(f"passage {i} has {n} tokens, and this model reads at most {longest}")
        for start, end in passage.spans:
            if not 0 <= start < end <= n:
                raise TextError(f"passage {i}: expected spans within its {n} tokens, found {start} to {end}")
        if not 0 <= passage.shared < n:
            raise TextError(
                f"passage {i}: expected 0 to {n - 1} shared tokens (one must be left), found {passage.shared}"
            )


def _content(
    identity: str,
    site: str,
    layers: Sequence[int],
    passages: Sequence[Passage],
    batch_size: int,
    shard_bytes: int,
) -> str:
    """The name of a collection: everything that its numbers depend on, and how it is stored."""
    digest = hashlib.sha256()
    digest.update(json.dumps([_PLAN, identity, site, list(layers), batch_size, shard_bytes]).encode())
    for passage in passages:
        digest.update(json.dumps([passage.ids, passage.spans, passage.shared]).encode())
    return digest.hexdigest()


def _first_rows(passages: Sequence[Passage], order: Sequence[int]) -> list[int]:
    """The row of the first span of each passage in this order, and at last how many rows there are."""
    return list(itertools.accumulate((len(passages[i].spans) for i in order), initial=0))


def _groups(passages: Sequence[Passage]) -> list[tuple[int, ...]]:
    """Passages that begin with the same shared tokens."""
    groups: dict[Hashable, list[int]] = {}
    for i, passage in enumerate(passages):
        groups.setdefault(passage.ids[: passage.shared] if passage.shared else (i, None), []).append(i)
    return [tuple(group) for group in groups.values()]


def _is_shared(group: tuple[int, ...], passages: Sequence[Passage]) -> bool:
    return len(group) > 1 and passages[group[0]].shared > 0


def _cut(passages: Sequence[Passage], rows: int, fork: bool) -> list[list[tuple[int, ...]]]:
    """The groups of each shard, of about so many rows: those of like prefixes, then the rest by length.

    Groups of equal prefixes can be encoded side by side without padding, and so can texts of equal length.
    """
    together, alone = [], []
    for group in _groups(passages):
        if fork and _is_shared(group, passages):
            together.append(group)
        else:
            alone += [(i,) for i in group]
    together.sort(key=lambda group: (passages[group[0]].shared, passages[group[0]].ids))
    alone.sort(key=lambda group: (len(passages[group[0]].ids), passages[group[0]].ids))
    shards: list[list[tuple[int, ...]]] = []
    for groups in (together, alone):
        shard: list[tuple[int, ...]] = []
        count = 0
        for group in groups:
            for part in _parts(group, passages, rows):
                more = sum(len(passages[i].spans) for i in part)
                if shard and count + more > rows:
                    shards.append(shard)
                    shard, count = [], 0
                shard.append(part)
                count += more
        if shard:
            shards.append(shard)
    return shards


def _parts(group: tuple[int, ...], passages: Sequence[Passage], rows: int) -> Iterator[tuple[int, ...]]:
    """A group in parts of about so many rows, so that one that all texts belong to is bounded too."""
    part: list[int] = []
    count = 0
    for i in group:
        if part and count + len(passages[i].spans) > rows:
            yield tuple(part)
            part, count = [], 0
        part.append(i)
        count += len(passages[i].spans)
    yield tuple(part)


def _plan(
    passages: Sequence[Passage], groups: Sequence[tuple[int, ...]], batch_size: int, per_pass: int
) -> list[_Step]:
    """The steps that read a shard with the fewest tokens, a pass being worth `per_pass` of them.

    The prefixes of a step are cut to the shortest of them, so that none is padded and every architecture
    numbers the tokens behind them right; what is cut off is read with each text's rest.
    """
    if not any(len(group) > 1 for group in groups):
        batches, _ = _batches(
            [(len(passages[group[0]].ids), group[0]) for group in groups], batch_size, per_pass
        )
        return [_Step(tuple((i,) for i in batch), 0, (batch,)) for batch in batches]
    # Runs of equal prefixes, and of those the cheapest to put together.
    runs: list[list[tuple[int, ...]]] = []
    for group in groups:
        shared = passages[group[0]].shared
        if not runs or len(runs[-1]) >= batch_size or passages[runs[-1][0][0]].shared != shared:
            runs.append([])
        runs[-1].append(group)
    best: list[tuple[float, list[_Step]]] = [(0.0, [])]
    for end in range(1, len(runs) + 1):
        options = []
        for start in range(end - 1, -1, -1):
            chosen = [group for run in runs[start:end] for group in run]
            if len(chosen) > batch_size and start < end - 1:
                break
            prefix = passages[chosen[0][0]].shared
            rest = [(len(passages[i].ids) - prefix, i) for group in chosen for i in group]
            batches, cost = _batches(rest, batch_size, per_pass)
            step = _Step(tuple(chosen), prefix, tuple(map(tuple, batches)))
            options.append((best[start][0] + cost + per_pass + prefix * len(chosen), [*best[start][1], step]))
        best.append(min(options, key=lambda option: option[0]))
    return best[-1][1]


def _batches(
    texts: Sequence[tuple[int, int]], batch_size: int, per_pass: int
) -> tuple[list[tuple[int, ...]], float]:
    """Texts, as (length, index), in batches of the least cost, the longest first; and that cost in tokens."""
    texts = sorted(texts, key=lambda text: (-text[0], text[1]))
    lengths = np.array([length for length, _ in texts], dtype=np.float64)
    cost, previous = np.zeros(len(texts) + 1), np.zeros(len(texts) + 1, dtype=np.int64)
    for end in range(1, len(texts) + 1):
        start = np.arange(max(0, end - batch_size), end)
        options = cost[start] + (end - start) * lengths[start] + per_pass
        previous[end] = start[options.argmin()]
        cost[end] = options.min()
    batches, end = [], len(texts)
    while end:
        start = int(previous[end])
        batches.append(tuple(i for _, i in texts[start:end]))
        end = start
    return batches[::-1], float(cost[-1])


def _picks(passage: Passage, first_row: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(token counted from `start`, row) for every token of a span that lies from `start` to before `end`."""
    for row, (low, high) in enumerate(passage.spans, first_row):
        for token in range(max(low, start), min(high, end)):
            yield token - start, row


def _new_cache(anatomy: Anatomy) -> DynamicCache:
    cache = DynamicCache(config=anatomy.model.config)
    # Others keep a state beside keys and values, or hold them in a form of their own.
    if others := {type(layer).__name__ for layer in cache.layers if type(layer) not in _FORKED}:
        raise TypeError(f"some layers keep other things than keys and values: {', '.join(sorted(others))}")
    return cache


def _fork(cache: DynamicCache, rows: Sequence[int]) -> DynamicCache:
    """A cache of these rows (with repeats); what follows replaces its layers' tensors and writes to none."""
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    fork.batch_select_indices(torch.tensor(list(rows)))
    return fork
