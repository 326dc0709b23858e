"""Which linear map of an attention module gives its queries, keys or values, and which of its columns.

A map that gives one of the three is known by its name. How a common map lays out its columns cannot be told
from a module, so attention modules with one are listed, and others are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn

from subvene.interventions import Sizes
from subvene.runner.models.linear import AnatomyError, features_of, is_linear

PROJECTIONS = ("query", "key", "value")
_OWN = {
    "query": re.compile(r"(^|_)(q|query)(_|$)"),
    "key": re.compile(r"(^|_)(k|key)(_|$)"),
    "value": re.compile(r"(^|_)(v|value)(_|$)"),
}
# Class of an attention module → name of its common map, and whether columns go by groups of heads (the
# queries that share a key and value, that key, that value; then the next group) or by kind (queries of all
# heads, then keys, then values), as transformers 5.23 splits them.
_COMMON = {
    "GPT2Attention": ("c_attn", False),
    "GPTNeoXAttention": ("query_key_value", True),
    "BloomAttention": ("query_key_value", True),
    "FalconAttention": ("query_key_value", True),
    "MptAttention": ("Wqkv", False),
    "Phi3Attention": ("qkv_proj", False),
}


@dataclass(frozen=True)
class Projection:
    """Where an attention module computes its queries, keys or values.

    Attributes:
        name: the linear map within the module.
        columns: of its output; None: all of them.
        width: how many these are.
    """

    name: str
    columns: tuple[int, ...] | None
    width: int


def projection_of(attention: nn.Module, which: str, path: str, sizes: Sizes) -> Projection:
    """The projection that gives `which` (`query`, `key` or `value`).

    Raises:
        AnatomyError: the module has no map for it, or several, or a common one of unknown layout.
    """
    kind = type(attention).__name__
    if kind in _COMMON:
        name, by_group = _COMMON[kind]
        columns = _columns(features_of(attention.get_submodule(name))[1], which, sizes, by_group=by_group)
        return Projection(name, columns, len(columns))
    named = [(n, c) for n, c in attention.named_children() if any(p.ndim == 2 for p in c.parameters())]
    found = [
        (name, child)
        for name, child in named
        if is_linear(child) and [one for one, names in _OWN.items() if names.search(name)] == [which]
    ]
    if len(found) != 1:
        there = ", ".join(name for name, _ in named)
        raise AnatomyError(
            f"{path}: {kind} has no one map for its {which} ({there}), and how it lays out a common one is "
            "not known here; name a module by its path, and columns by `subspaces`"
        )
    return Projection(found[0][0], None, features_of(found[0][1])[1])


def _columns(features: int, which: str, sizes: Sizes, *, by_group: bool) -> tuple[int, ...]:
    shared = (features // sizes.head_dim - sizes.n_heads) // 2
    groups = shared if by_group else 1
    counts = (sizes.n_heads // groups, shared // groups, shared // groups)
    heads = torch.arange(features).view(groups, sum(counts), sizes.head_dim)
    return tuple(heads.split(counts, 1)[PROJECTIONS.index(which)].reshape(-1).tolist())
