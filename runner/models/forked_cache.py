"""Caches of keys and values that many rows continue: each row's part is forked, nothing is encoded twice."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

FORKABLE = (DynamicLayer, DynamicSlidingWindowLayer)
"""The kinds of cache layers that can be forked: they hold keys and values and nothing else."""


def why_not_forked(model: Any) -> str | None:
    """Why the cache of a model cannot be forked; None if it can: every block keeps keys and values alone."""
    name = type(model).__name__
    if getattr(model, "_is_stateful", False) or model.config.is_encoder_decoder:
        return f"{name} keeps a state that cannot be forked"
    try:
        layers = DynamicCache(config=model.config).layers
    except (KeyError, AttributeError, ValueError) as error:
        return f"the kind of {name}'s cache cannot be told ({error!r})"
    # A sliding window is applied by the attention mask, too, so a layer that forgets nothing can stand in.
    kinds = {type(layer) for layer in layers} - set(FORKABLE)
    if kinds:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        return f"{name} has layers whose cache cannot be forked ({names})"
    return None


def why_not_in_one_row(model: Any, tokens: int, what: str) -> str | None:
    """What speaks against texts side by side in one row, kept apart by a mask; None if nothing does.

    Args:
        model: the model.
        tokens: of the longest of them.
        what: that one is.
    """
    name = type(model).__name__
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{name} takes no position_ids"
    config = model.config.get_text_config()
    if getattr(config, "window_size", None) is not None:
        # GPT-Neo's local attention counts places in the sequence, whatever the mask says.
        return f"{name} limits attention within its attention module (window_size)"
    # Within such a window a mask for all layers is right; beyond it, each kind of layer needs its own.
    for field in ("sliding_window", "attention_chunk_size"):
        if (window := getattr(config, field, None)) is not None and tokens > window:
            return f"the {what} has {tokens} tokens and {field} is {window}"
    return None


def layers_of(cache: Cache) -> list[Any]:
    """The layers of a cache."""
    # Untyped: that they are layers of this module, or plain ones, is known to whoever made the cache.
    return list(cache.layers)


def is_forked(cache: Any) -> bool:
    """Whether a cache is one of this module's: whoever forks one answers for what it holds."""
    return any(isinstance(layer, Branch | Buffer) for layer in getattr(cache, "layers", ()))


def continued(cache: Cache, rows: Sequence[int], *, room: int) -> Cache:
    """A cache whose rows continue those `rows` of a filled one (any row several times), token by token.

    Args:
        cache: filled by one pass or more; it is left as it is.
        rows: which of its rows each new row continues.
        room: slots to hold ready after the first pass.
    """
    index = torch.tensor(list(rows))
    length = cache.get_seq_length()
    return Cache(
        layers=[Buffer(Own(layer.keys, layer.values, index), length, room) for layer in layers_of(cache)]
    )


def empty(model: Any, *, room: int) -> Cache:
    """A cache that holds nothing yet, for rows that are passed as a whole, token by token."""
    return Cache(layers=[Buffer(None, 0, room) for _ in layers_of(DynamicCache(config=model.config))])


def branch(cache: Cache, rows: Sequence[int]) -> Cache:
    """A cache for one pass whose rows continue those `rows` of a cache that `SharedPrefix.fork` made."""
    index = torch.tensor(list(rows))
    return Cache(layers=[layer.branch(index) for layer in layers_of(cache)])


def select(cache: Cache, rows: torch.Tensor) -> None:
    """Keep only `rows` of a cache with room."""
    for layer in layers_of(cache):
        layer.select(rows)


class Shared:
    """Keys and values [versions, heads, slots, width] that rows continue, shifted by the row's padding.

    Args:
        keys: of the prefix.
        values: of the prefix.
        slots: of each row, where its slots stand in the prefix; None: as they are.
        rows: how many there are.
        which: of each row, the version that it continues; None: there is one.
    """

    def __init__(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        slots: torch.Tensor | None,
        rows: int,
        which: torch.Tensor | None = None,
    ) -> None:
        self.keys, self.values, self.rows = keys, values, rows
        self.slots = None if slots is None else slots.to(keys.device)
        self.which = None if which is None else which.to(keys.device)
        self.count = keys.shape[2]

    def put(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Write what `source` (its keys or its values) holds for each row into `target`."""
        if self.which is not None:
            slots = torch.arange(self.count, device=source.device) if self.slots is None else self.slots
            target.copy_(source[self.which.unsqueeze(1), :, slots].transpose(1, 2))
        elif self.slots is None:
            target.copy_(source.expand(self.rows, -1, -1, -1))
        else:
            target.copy_(source[0][:, self.slots].transpose(0, 1))

    def select(self, index: torch.Tensor) -> Shared:
        """The same for some of the rows."""
        chosen = index.to(self.keys.device)
        slots = None if self.slots is None else self.slots[chosen]
        which = None if self.which is None else self.which[chosen]
        return Shared(self.keys, self.values, slots, len(index), which)


class Own:
    """Keys and values [rows, heads, slots, width], some rows of which are continued."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, index: torch.Tensor) -> None:
        self.keys, self.values, self.index = keys, values, index.to(keys.device)
        self.count = keys.shape[2]

    def put(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Write what `source` (its keys or its values) holds for each row into `target`."""
        target.copy_(source[self.index])


class Branch(DynamicLayer):
    """One layer of a cache for one pass: it forgets what it put together, and keeps what the pass added."""

    def __init__(self, segments: Sequence[Shared | Own], length: int) -> None:
        super().__init__()
        self.segments = segments
        self.length = length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in the keys and values of a pass; all of them, those before it among them."""
        if self.is_initialized:
            raise RuntimeError("this cache was made for one pass")
        self.is_initialized = True
        self.keys, self.values = key_states, value_states
        past, self.length = self.length, self.length + key_states.shape[2]
        return (
            _joined([(segment, segment.keys) for segment in self.segments], key_states, past),
            _joined([(segment, segment.values) for segment in self.segments], value_states, past),
        )

    def get_seq_length(self) -> int:
        """Slots that are filled."""
        return self.length

    def branch(self, index: torch.Tensor) -> Branch:
        """A layer for one more pass, whose rows continue those rows of this one."""
        prefix = self.segments[0]
        if not isinstance(prefix, Shared) or self.keys is None or self.values is None:
            raise RuntimeError("only a cache that one pass has filled can be branched")
        return Branch([prefix.select(index), Own(self.keys, self.values, index)], self.length)

    def row_bytes(self, slots: int) -> int:
        """Bytes of `slots` slots of a row."""
        prefix = self.segments[0]
        return sum(t[0, :, 0].numel() * t.element_size() * slots for t in (prefix.keys, prefix.values))


class Buffer(DynamicLayer):
    """One layer of a cache that is continued token by token, in place."""

    keys: Any
    values: Any

    def __init__(self, prefix: Shared | Own | None, length: int, room: int) -> None:
        super().__init__()
        self.prefix: Shared | Own | None = prefix
        self.length = length
        self.room = room

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in the keys and values of a pass; all of them, those before it among them."""
        past, self.length = self.length, self.length + key_states.shape[2]
        if not self.is_initialized:
            before, self.prefix = [] if self.prefix is None else [self.prefix], None
            self.keys = _joined([(part, part.keys) for part in before], key_states, past, self.room)
            self.values = _joined([(part, part.values) for part in before], value_states, past, self.room)
            self.is_initialized = True
        else:
            if self.length > self.keys.shape[2]:
                raise RuntimeError(f"this cache was made for {self.keys.shape[2]} slots")
            self.keys[:, :, past : self.length] = key_states
            self.values[:, :, past : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        """Slots that are filled."""
        return self.length

    def select(self, rows: torch.Tensor) -> None:
        """Keep only these rows."""
        rows = rows.to(self.keys.device)
        self.keys, self.values = self.keys[rows], self.values[rows]


def _joined(
    segments: Sequence[tuple[Any, torch.Tensor]], new: torch.Tensor, past: int, room: int = 0
) -> torch.Tensor:
    """Segments and what is new, one after the other in new memory, with `room` empty slots at the end."""
    rows, heads, count, width = new.shape
    whole = new.new_empty(rows, heads, past + count + room, width)
    at = 0
    for segment, source in segments:
        segment.put(whole[:, :, at : at + segment.count], source)
        at += segment.count
    whole[:, :, past : past + count] = new
    return whole
