"""How passages are laid into forward passes, so that few tokens are passed twice and few are padding.

This file knows token ids and their numbers, and nothing of models. Passages that begin alike are a group, and
there are three ways to read one:

- `tree`: the group is one row, in which every token stands once and sees only what it follows. Nothing is
  passed twice.
- `fork`: the group's shared tokens are passed once, and their keys and values stand before the rest of every
  passage. For architectures that place or mask tokens in a way of their own.
- `whole`: every passage is a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from subvene.runner.passes.passages import Passage, common_prefix

Way = Literal["tree", "fork", "whole"]
Group = tuple[int, ...]

# In a row every token attends over all others, masked or not: longer rows would cost more than they save.
_LONGEST_TREE = 512


@dataclass(frozen=True)
class Trees:
    """One pass whose rows are groups, each a tree of tokens."""

    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Fork:
    """Passes over passages whose groups share the encoding of their first tokens.

    Attributes:
        groups: indices of the passages of each group.
        prefix: so many tokens at the start of each group are encoded once; 0: none.
        batches: indices of the passages whose rest shares a pass.
    """

    groups: tuple[Group, ...]
    prefix: int
    batches: tuple[tuple[int, ...], ...]


Step = Trees | Fork


@dataclass(frozen=True)
class Tree:
    """The tokens of a group, each once; parents stand before their children.

    Attributes:
        ids: token ids.
        depths: how many tokens precede each one in its texts, which is its position.
        parents: index of the token that each one follows; -1 for the first.
        paths: of each passage of the group, where its tokens stand.
    """

    ids: tuple[int, ...]
    depths: tuple[int, ...]
    parents: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]


def tree_of(rows: Sequence[Sequence[int]]) -> Tree:
    """The tree of some texts' token ids."""
    ids: list[int] = []
    depths: list[int] = []
    parents: list[int] = []
    nodes: dict[tuple[int, int], int] = {}
    paths = []
    for row in rows:
        path: list[int] = []
        parent = -1
        for depth, token in enumerate(row):
            place = nodes.setdefault((parent, token), len(ids))
            if place == len(ids):
                ids.append(token)
                depths.append(depth)
                parents.append(parent)
            path.append(place)
            parent = place
        paths.append(tuple(path))
    return Tree(tuple(ids), tuple(depths), tuple(parents), tuple(paths))


def groups_of(passages: Sequence[Passage]) -> list[Group]:
    """Passages that begin with the same shared tokens."""
    groups: dict[Hashable, list[int]] = {}
    for i, passage in enumerate(passages):
        groups.setdefault(passage.ids[: passage.shared] if passage.shared else (i, None), []).append(i)
    return [tuple(group) for group in groups.values()]


def shares(group: Group, passages: Sequence[Passage]) -> bool:
    """Whether the passages of a group have anything in common."""
    return len(group) > 1 and passages[group[0]].shared > 0


def first_rows(passages: Sequence[Passage], order: Sequence[int]) -> list[int]:
    """The row of the first span of each passage in this order, and at last how many rows there are."""
    return list(itertools.accumulate((len(passages[i].spans) for i in order), initial=0))


def cut(passages: Sequence[Passage], rows: int, way: Way) -> list[list[Group]]:
    """The groups of each shard, of about so many rows: those that share a prefix, then the rest by length.

    Groups of equal prefixes can be encoded side by side without padding, and so can texts of equal length.
    """
    together: list[Group] = []
    alone: list[Group] = []
    for group in groups_of(passages):
        if way != "whole" and shares(group, passages):
            together.append(group)
        else:
            alone += [(i,) for i in group]
    together.sort(key=lambda group: (passages[group[0]].shared, passages[group[0]].ids))
    alone.sort(key=lambda group: (len(passages[group[0]].ids), passages[group[0]].ids))
    shards: list[list[Group]] = []
    for groups in (together, alone):
        shard: list[Group] = []
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


def _parts(group: Group, passages: Sequence[Passage], rows: int) -> Iterator[Group]:
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


def plan(
    passages: Sequence[Passage], groups: Sequence[Group], way: Way, batch_size: int, per_pass: int
) -> list[Step]:
    """The steps that read a shard with the fewest tokens, a pass being worth `per_pass` of them."""
    if way == "whole" or not any(shares(group, passages) for group in groups):
        texts = [(len(passages[i].ids), 1, (i,)) for group in groups for i in group]
        return [
            Fork(tuple(batch), 0, (tuple(i for (i,) in batch),))
            for batch in _batches(texts, batch_size, per_pass)[0]
        ]
    if way == "tree":
        trees = [tree for group in groups for tree in trees_of(group, passages, batch_size)]
        sized = [(len(tree_of([passages[i].ids for i in tree]).ids), len(tree), tree) for tree in trees]
        return [Trees(tuple(batch)) for batch in _batches(sized, batch_size, per_pass)[0]]
    return list(_forks(passages, groups, batch_size, per_pass))


def trees_of(group: Group, passages: Sequence[Passage], batch_size: int) -> Iterator[Group]:
    """A group in parts, each a row of its own; neighbours have the most in common."""
    part: list[int] = []
    count = 0
    for i in sorted(group, key=lambda i: passages[i].ids):
        ids = passages[i].ids
        more = len(ids) - (common_prefix([passages[part[-1]].ids, ids]) if part else 0)
        if part and (count + more > _LONGEST_TREE or len(part) == batch_size):
            yield tuple(part)
            part, count, more = [], 0, len(ids)
        part.append(i)
        count += more
    yield tuple(part)


def _forks(
    passages: Sequence[Passage], groups: Sequence[Group], batch_size: int, per_pass: int
) -> Sequence[Fork]:
    """The prefixes of a step are cut to the shortest of them, so that none is padded.

    Every architecture then numbers the tokens behind them right; what is cut off is read with each text's
    rest.
    """
    # Runs of equal prefixes, and of those the cheapest to put together.
    runs: list[list[Group]] = []
    for group in groups:
        shared = passages[group[0]].shared
        if not runs or len(runs[-1]) >= batch_size or passages[runs[-1][0][0]].shared != shared:
            runs.append([])
        runs[-1].append(group)
    best: list[tuple[float, list[Fork]]] = [(0.0, [])]
    for end in range(1, len(runs) + 1):
        options = []
        for start in range(end - 1, -1, -1):
            chosen = [group for run in runs[start:end] for group in run]
            if len(chosen) > batch_size and start < end - 1:
                break
            prefix = passages[chosen[0][0]].shared
            rest = [(len(passages[i].ids) - prefix, 1, (i,)) for group in chosen for i in group]
            batches, cost = _batches(rest, batch_size, per_pass)
            step = Fork(tuple(chosen), prefix, tuple(tuple(i for (i,) in batch) for batch in batches))
            options.append((best[start][0] + cost + per_pass + prefix * len(chosen), [*best[start][1], step]))
        best.append(min(options, key=lambda option: option[0]))
    return best[-1][1]


def _batches(
    rows: Sequence[tuple[int, int, Group]], batch_size: int, per_pass: int
) -> tuple[list[list[Group]], float]:
    """Rows, as (length, how many texts, which), in batches of the least cost; and that cost in tokens.

    The longest come first, so that too little memory shows at once.
    """
    rows = sorted(rows, key=lambda row: (-row[0], row[2]))
    lengths = np.array([length for length, _, _ in rows], dtype=np.float64)
    texts = np.concatenate([[0], np.cumsum([count for _, count, _ in rows])])
    cost, previous = np.zeros(len(rows) + 1), np.zeros(len(rows) + 1, dtype=np.int64)
    for end in range(1, len(rows) + 1):
        first = int(np.searchsorted(texts, texts[end] - batch_size))
        start = np.arange(min(first, end - 1), end)
        options = cost[start] + (end - start) * lengths[start] + per_pass
        previous[end] = start[options.argmin()]
        cost[end] = options.min()
    batches, end = [], len(rows)
    while end:
        start_of = int(previous[end])
        batches.append([which for _, _, which in rows[start_of:end]])
        end = start_of
    return batches[::-1], float(cost[-1])
