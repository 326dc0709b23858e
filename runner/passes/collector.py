"""Collecting activations of many texts at a site, for every recipe that needs those of single texts.

One row is the mean over a span of tokens: the last token, the last n, a response, or (as many rows as
tokens) every token. Rows go to disk in shards; a collection that was killed goes on where it stopped, and
one that is there already is read. What several texts begin with is passed through the model once (see
`passes`).

What is collected depends on nothing but the model and the texts of the call, bit for bit: texts are batched
within their shard, and shards are cut by the texts alone.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers.cache_utils import DynamicCache

from subvene.runner.data.limits import refuse_beyond_context
from subvene.runner.data.text import TextError, pad
from subvene.runner.files.progress import track
from subvene.runner.models.anatomy import Anatomy, AnatomyError
from subvene.runner.models.devices import input_device
from subvene.runner.models.forked_cache import FORKABLE
from subvene.runner.models.identity import model_sha256
from subvene.runner.models.parts import PartSizes
from subvene.runner.passes.activations import forward_reading
from subvene.runner.passes.passages import Passage, every_token
from subvene.runner.passes.passes import (
    Fork,
    Step,
    Tree,
    Trees,
    Way,
    cut,
    first_rows,
    groups_of,
    plan,
    shares,
    tree_of,
    trees_of,
)
from subvene.runner.passes.shards import Index, Store, rows_per_shard
from subvene.specs import Site

log = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20
# Changes whenever the same texts are cut into other shards or batches, and so to other rounding.
_PLAN = 3
# What a forward pass costs beside its tokens, in tokens: below it, padding is cheaper than another pass.
_PASS_ON_CPU, _PASS = 24, 4096
# How far apart two activations of one token may be, in relation to their norm, that were computed in other
# batches. A cache that does not carry what a prefix said is off by about 1.
_SAME = {torch.float32: 1e-4, torch.float64: 1e-8}
_SAME_IN_LOW_PRECISION = 0.05


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
    def way(self) -> Way:
        """How passages that share a prefix were read; `whole` if none share any."""
        return self.store.index.way

    @property
    def note(self) -> str | None:
        """Why they were not read in a way that costs less."""
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
    # From here on in an order that their content gives, so that no other one can matter.
    given = sorted(
        range(len(passages)), key=lambda i: (passages[i].ids, passages[i].spans, passages[i].shared)
    )
    passages = [passages[i] for i in given]
    layers = tuple(sorted(set(layers)))
    width = _width(PartSizes.of(anatomy), site, layers)
    content = _content(
        identity or model_sha256(anatomy.model), site, layers, passages, batch_size, shard_bytes
    )
    target = folder / content[:24]
    target.mkdir(parents=True, exist_ok=True)
    reader = _Reader(anatomy, site, layers, width, pad_id, batch_size)
    with FileLock(target / ".lock"):
        store = Store.open(target, content)
        way, note = reader.way(passages) if store is None else (store.index.way, None)
        shards = cut(passages, rows_per_shard(layers, width, shard_bytes), way)
        if store is None:
            rows = tuple(sum(len(passages[i].spans) for group in shard for i in group) for shard in shards)
            store = Store.create(target, Index(content, site, layers, width, rows, way, note))
            if way == "whole" and note is not None:
                log.warning("%s: shared prefixes are encoded again for every text: %s", site, note)
        store.clean()
        missing = [i for i in range(len(shards)) if not store.has(i)]
        per_pass = _PASS_ON_CPU if input_device(reader.model).type == "cpu" else _PASS
        plans = {i: plan(passages, shards[i], way, batch_size, per_pass) for i in missing}
        steps = track([(i, step) for i, some in plans.items() for step in some], description)
        for shard, work in itertools.groupby(steps, lambda pair: pair[0]):
            order = [i for group in shards[shard] for i in group]
            store.put(shard, reader.rows(passages, order, (step for _, step in work)))
    order = [i for shard in shards for group in shard for i in group]
    places = dict(zip(order, first_rows(passages, order), strict=False))
    rows_of = {i: places[sorted_at] for sorted_at, i in enumerate(given)}
    return Collected(store, tuple(rows_of[i] for i in range(len(passages))), reader.tokens)


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
        self.model: Any = anatomy.model
        self._anatomy, self._site, self._layers, self._width = anatomy, site, layers, width
        self._pad_id, self._batch_size = pad_id, batch_size
        self.tokens = 0

    def rows(
        self, passages: Sequence[Passage], order: Sequence[int], steps: Iterator[Step]
    ) -> dict[int, torch.Tensor]:
        """Layer → float32 [spans of the passages in this order, width]."""
        *first, count = first_rows(passages, order)
        row_of = dict(zip(order, first, strict=True))
        sums = {layer: torch.zeros(count, self._width) for layer in self._layers}
        for step in steps:
            if isinstance(step, Trees):
                self._trees(passages, row_of, step, sums)
            else:
                self._fork(passages, row_of, step, sums)
        spans = [end - start for i in order for start, end in passages[i].spans]
        lengths = torch.tensor(spans, dtype=torch.float32).unsqueeze(1)
        return {layer: total.div_(lengths) for layer, total in sums.items()}

    def _trees(
        self, passages: Sequence[Passage], row_of: dict[int, int], step: Trees, sums: dict[int, torch.Tensor]
    ) -> None:
        trees = [tree_of([passages[i].ids for i in group]) for group in step.groups]
        picks = [
            [
                (path[token], row)
                for i, path in zip(group, tree.paths, strict=True)
                for token, row in _picks(passages[i], row_of[i], 0, len(path))
            ]
            for group, tree in zip(step.groups, trees, strict=True)
        ]
        mask, positions = _tree_inputs(trees, self.model.dtype)
        self._pass([tree.ids for tree in trees], picks, sums, attention_mask=mask, position_ids=positions)

    def _fork(
        self, passages: Sequence[Passage], row_of: dict[int, int], step: Fork, sums: dict[int, torch.Tensor]
    ) -> None:
        cache = None
        if step.prefix:
            # 1. Each group's prefix, once.
            cache = _new_cache(self.model)
            picks = [
                [pick for i in group for pick in _picks(passages[i], row_of[i], 0, step.prefix)]
                for group in step.groups
            ]
            self._pass([passages[group[0]].ids[: step.prefix] for group in step.groups], picks, sums, cache)
        # 2. The rest of every text, under its group's keys and values.
        group_of = {i: g for g, group in enumerate(step.groups) for i in group}
        for batch in step.batches:
            rest = [passages[i].ids[step.prefix :] for i in batch]
            ends = [list(_picks(passages[i], row_of[i], step.prefix, len(passages[i].ids))) for i in batch]
            fork = None if cache is None else _fork_of(cache, [group_of[i] for i in batch])
            self._pass(rest, ends, sums, fork)

    def way(self, passages: Sequence[Passage]) -> tuple[Way, str | None]:
        """How this model can read passages that share a prefix, and why not in a way that costs less.

        Tried rather than looked up, since masks, positions and caches are every architecture's own affair:
        passages that are read together must be what they are when each is read whole. Where windows or
        limits are in the way, they are so for the longest passage and the largest tree.
        """
        groups = [group for group in groups_of(passages) if shares(group, passages)]
        if not groups:
            return "whole", None
        try:
            windows = [getattr(layer, "sliding_window", None) for layer in _new_cache(self.model).layers]
        except Exception as error:  # configs that transformers' cache does not know
            return "whole", f"{type(error).__name__}: {str(error)[:200]}"
        trees = [tree for group in groups for tree in trees_of(group, passages, self._batch_size)]
        largest = max(trees, key=lambda tree: len(tree_of([passages[i].ids for i in tree]).ids))
        longest = max((i for tree in trees for i in tree), key=lambda i: len(passages[i].ids))
        around = next(tree for tree in trees if longest in tree)
        window = min((window for window in windows if window is not None), default=None)
        if window is not None and window < len(passages[longest].ids):
            no_trees: str | None = (
                f"some layers see {window} tokens only"  # which a mask for all layers is not
            )
        else:
            # The last passage of a tree stands behind all others in its row.
            steps: list[Step] = [Trees((tree,)) for tree in dict.fromkeys((largest, around))]
            no_trees = self._differs(passages, (largest[-1], longest), steps)
        if no_trees is None:
            return "tree", None
        other = next(i for group in groups if longest in group for i in group if i != longest)
        fork = Fork(((longest, other),), passages[longest].shared, ((longest,), (other,)))
        if (no_fork := self._differs(passages, (longest, other), [fork])) is None:
            return "fork", f"no tree: {no_trees}"
        return "whole", f"no tree: {no_trees}; no fork: {no_fork}"

    def _differs(
        self, passages: Sequence[Passage], chosen: Sequence[int], steps: Sequence[Step]
    ) -> str | None:
        """What is wrong with the chosen passages as these steps read them; None if nothing is."""
        chosen = list(dict.fromkeys(chosen))
        read = [
            Passage(passage.ids, every_token(0, len(passage.ids)) if i in chosen else (), passage.shared)
            for i, passage in enumerate(passages)
        ]
        order = [*chosen, *(i for i in range(len(read)) if i not in chosen)]
        alone = tuple((i,) for i in chosen)
        whole = self.rows(read, order, iter([Fork(alone, 0, alone)]))
        try:
            found = self.rows(read, order, iter(steps))
        except Exception as error:  # modelling code that knows no such inputs trips over anything
            return f"{type(error).__name__}: {str(error)[:200]}"
        limit = _SAME.get(self.model.dtype, _SAME_IN_LOW_PRECISION)
        for layer, known in whole.items():
            difference = (known - found[layer]).norm(dim=1) / known.norm(dim=1).clamp_min(1e-6)
            if not bool((difference <= limit).all()):
                return f"{self._site}[{layer}] differs by {float(difference.max()):.2g} of its norm"
        return None

    def _pass(
        self,
        rows: Sequence[Sequence[int]],
        picks: Sequence[Sequence[tuple[int, int]]],
        sums: dict[int, torch.Tensor],
        cache: Any = None,
        **inputs: torch.Tensor,
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

        forward_reading(self._anatomy, self._site, self._layers, batch, read, cache=cache, **inputs)


def _width(sizes: PartSizes, site: Site, layers: Sequence[int]) -> int:
    """The one width that the layers have at a site.

    Raises:
        AnatomyError: they differ in it, or a layer has no such site.
    """
    widths = {layer: sizes.site_width(site, layer) for layer in layers}
    if len(set(widths.values())) > 1:
        raise AnatomyError(f"{site}: expected layers of one width, found {widths}; read them one by one")
    return next(iter(widths.values()))


def _check(passages: Sequence[Passage], anatomy: Anatomy) -> None:
    refuse_beyond_context(anatomy.model, [len(passage.ids) for passage in passages], "passage")
    for i, passage in enumerate(passages):
        n = len(passage.ids)
        if not n:
            raise TextError(f"passage {i} holds no token")
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


def _picks(passage: Passage, first_row: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(token counted from `start`, row) for every token of a span that lies from `start` to before `end`."""
    for row, (low, high) in enumerate(passage.spans, first_row):
        for token in range(max(low, start), min(high, end)):
            yield token - start, row


def _tree_inputs(trees: Sequence[Tree], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """What each token of some trees sees [rows, 1, tokens, tokens], to be added, and where it stands."""
    longest = max(len(tree.ids) for tree in trees)
    sees = torch.eye(longest, dtype=torch.bool).repeat(len(trees), 1, 1)  # padding sees itself: no NaN
    positions = torch.zeros(len(trees), longest, dtype=torch.long)
    for row, tree in enumerate(trees):
        positions[row, : len(tree.ids)] = torch.tensor(tree.depths)
        for token, parent in enumerate(tree.parents):
            if parent >= 0:
                sees[row, token] |= sees[row, parent]
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)
    return mask.unsqueeze(1), positions


def _new_cache(model: Any) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    # Others keep a state beside keys and values, or hold them in a form of their own.
    if others := {type(layer).__name__ for layer in cache.layers if type(layer) not in FORKABLE}:
        raise TypeError(f"some layers keep other things than keys and values: {', '.join(sorted(others))}")
    return cache


def _fork_of(cache: DynamicCache, rows: Sequence[int]) -> DynamicCache:
    """A cache of these rows (with repeats); what follows replaces its layers' tensors and writes to none."""
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    fork.batch_select_indices(torch.tensor(list(rows)))
    return fork
