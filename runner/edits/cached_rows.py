"""Which rows the rows of a cache were when a call left it: selected, repeated or reordered since.

Whoever holds a cache may do that between two calls (`batch_select_indices`, `batch_repeat_interleave`,
`reorder_cache`), and nothing in the next call says so.
"""

from __future__ import annotations

from typing import Any

import torch

from subvene.runner.edits.cache_record import CacheError


def signature(cache: Any) -> torch.Tensor | None:
    """Numbers [rows, …] by which the rows of a cache are known; None where its layers show none.

    Of what is cached in full if there is any, for that may also have been cropped.
    """
    layers = list(reversed(getattr(cache, "layers", [])))
    layers.sort(key=lambda layer: bool(getattr(layer, "is_sliding", False)))
    for layer in layers:
        keys = getattr(layer, "keys", None)
        if isinstance(keys, torch.Tensor) and keys.ndim == 4:
            return keys.detach().sum((1, 3), dtype=torch.float32)
    for layer in layers:
        for name in ("recurrent_states", "conv_states"):
            for state in (getattr(layer, name, None) or {}).values():
                if isinstance(state, torch.Tensor):
                    return state.detach().flatten(1).sum(1, keepdim=True, dtype=torch.float32)
    return None


def order_of(before: torch.Tensor | None, cache: Any, treated: torch.Tensor) -> torch.Tensor | None:
    """Of each row of a cache, which row it was when it had the signature `before`.

    Args:
        before: the signature then.
        cache: the cache now.
        treated: [rows then, …], what is done to each row; rows that are treated alike need no telling apart.

    Returns:
        Row numbers; None if every row is where it was.

    Raises:
        CacheError: that cannot be told, and makes a difference.
    """
    now, rows = signature(cache), len(treated)
    if before is None or now is None:
        if _are_alike(treated):
            return None
        raise CacheError(
            f"a {type(cache).__name__} shows no rows, and whether they were reordered since cannot be seen; "
            "pass the whole sequences without a cache"
        )
    slots = min(now.shape[1], before.shape[1])
    same = torch.isclose(now[:, None, :slots], before[None, :, :slots], rtol=1e-4, atol=1e-4).all(-1)
    if not same.any(1).all():
        raise CacheError(
            "past_key_values holds other tokens than the last call left in it; pass the whole sequences "
            "without a cache"
        )
    count = len(same)
    here = torch.arange(count, device=same.device)
    if count % rows == 0:
        repeated = here // (count // rows)
        if same[here, repeated].all():
            return None if count == rows else repeated
    order = same.int().argmax(1)
    treated = treated.to(same.device)
    differs = (treated[None] != treated[order][:, None]).any(-1)
    if (same & differs).any():
        raise CacheError(
            "rows of past_key_values were selected or reordered since the last call, and which they are "
            "cannot be told: rows that hold the same have other prompt_lengths or strengths. Pass the whole "
            "sequences without a cache"
        )
    return order


def _are_alike(treated: torch.Tensor) -> bool:
    return bool((treated == treated[:1]).all())
