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
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from subvene.runner.activations import forward_reading
from subvene.runner.anatomy import Anatomy, text_config
from subvene.runner.passages import Passage
from subvene.runner.passes import (
    Fork,
    Step,
    Tree,
    Trees,
    Way,
    groups_of,
    shares,
    tree_of,
)
from subvene.runner.shards import Store
from subvene.runner.text import TextError, pad

log = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20
# Changes whenever the same texts are cut into other shards or batches, and so to other rounding.
_PLAN = 2
# What a forward pass costs beside its tokens, in tokens: below it, padding is cheaper than another pass.
_PASS_ON_CPU, _PASS = 24, 4096
# How far apart two activations of one token may be, in relation to their norm, that were computed in other
# batches. A cache that does not carry what a prefix said is off by about 1.
_SAME = {torch.float32: 1e-3, torch.float64: 1e-6}
_SAME_IN_LOW_PRECISION = 0.1
_FORKED = (DynamicLayer, DynamicSlidingWindowLayer)


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
    def way(self, passages: Sequence[Passage]) -> tuple[Way, str | None]:
        """How this model can read passages that share a prefix, and why not in a way that costs less.

        Tried rather than looked up, since masks, positions and caches are every architecture's own affair:
        passages that are read together must be what they are when each is read whole. Where windows or
        limits are in the way, they are so for the longest passage and the largest tree.
        """
        groups = [group for group in groups_of(passages) if shares(group, passages)]
        if not groups:
            return "whole", None
        trees = [tree for group in groups for tree in trees_of(group, passages, self._batch_size)]
        largest = max(trees, key=lambda tree: len(tree_of([passages[i].ids for i in tree]).ids))
        longest = max((i for tree in trees for i in tree), key=lambda i: len(passages[i].ids))
        around = next(tree for tree in trees if longest in tree)
        # The last passage of a tree stands behind all others in its row.
        steps: list[Step] = [Trees((tree,)) for tree in dict.fromkeys((largest, around))]
        if (no_trees := self._differs(passages, (largest[-1], longest), steps)) is None:
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
        ends = {i: ((n := len(passages[i].ids)) - 1, n) for i in dict.fromkeys(chosen)}
        read = [
            Passage(passage.ids, (ends[i],) if i in ends else (), passage.shared)
            for i, passage in enumerate(passages)
        ]
        whole = self.rows(read, list(ends), iter([Fork((), 0, tuple((i,) for i in ends))]))
        order = [*ends, *(i for i in range(len(read)) if i not in ends)]
        try:
            found = self.rows(read, order, iter(steps))
        except Exception as error:  # modelling code that knows no such inputs trips over anything
            return f"{type(error).__name__}: {str(error)[:200]}"
        limit = _SAME.get(self._anatomy.model.dtype, _SAME_IN_LOW_PRECISION)
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


def _picks(passage: Passage, first_row: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(token counted from `start`, row) for every token of a span that lies from `start` to before `end`."""
    for row, (low, high) in enumerate(passage.spans, first_row):
        for token in range(max(low, start), min(high, end)):
            yield token - start, row


def _tree_inputs(trees: Sequence[Tree], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """What each token of some trees sees [rows, 1, tokens, tokens], to be added, and where it stands."""
    longest = max(len(tree.ids) for tree in trees)
    sees = torch.eye(longest, dtype=torch.bool).repeat(len(trees), 1, 1)  # padding sees itself, and no NaN
    positions = torch.zeros(len(trees), longest, dtype=torch.long)
    for row, tree in enumerate(trees):
        positions[row, : len(tree.ids)] = torch.tensor(tree.depths)
        for token, parent in enumerate(tree.parents):
            if parent >= 0:
                sees[row, token] |= sees[row, parent]
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)
    return mask.unsqueeze(1), positions


def _new_cache(anatomy: Anatomy) -> DynamicCache:
    cache = DynamicCache(config=anatomy.model.config)
    # Others keep a state beside keys and values, or hold them in a form of their own.
    if others := {type(layer).__name__ for layer in cache.layers if type(layer) not in _FORKED}:
        raise TypeError(f"some layers keep other things than keys and values: {', '.join(sorted(others))}")
    return cache


def _fork_of(cache: DynamicCache, rows: Sequence[int]) -> DynamicCache:
    """A cache of these rows (with repeats); what follows replaces its layers' tensors and writes to none."""
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    fork.batch_select_indices(torch.tensor(list(rows)))
    return fork
