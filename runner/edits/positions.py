"""Token roles in generation and in scoring: who is prompt, cursor, response or padding.

The only place that turns a batch and a cache into absolute positions. It never looks at how many tokens a
forward call carries to decide what they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from subvene.interventions import Tokens
from subvene.interventions.positions import Rule
from subvene.specs import SubveneError

PACKED_KEYWORDS = ("cu_seq_lens_q", "cu_seq_lens_k", "block_table", "read_index", "write_index", "seq_idx")


class PositionError(SubveneError, ValueError):
    """The positions of the tokens of a forward call cannot be told."""


# The names under which models take their cache.
_CACHES = ("past_key_values", "cache_params", "state")


def cache_of(inputs: Mapping[str, Any]) -> Any:
    """The cache that a forward call is given; None without one."""
    return next((inputs[name] for name in _CACHES if inputs.get(name) is not None), None)


def cache_in(output: Any) -> Any:
    """The cache that a forward call hands back; None without one."""
    if isinstance(output, Mapping):
        return cache_of(output)
    parts = output if isinstance(output, tuple | list) else ()
    return next((part for part in parts if hasattr(part, "get_seq_length")), None)


def cached_length(inputs: Mapping[str, Any]) -> int:
    """Tokens that a forward call's cache says it holds; 0 without a cache, or where it cannot say."""
    cache = cache_of(inputs)
    if not hasattr(cache, "get_seq_length"):
        return 0
    try:
        return int(cache.get_seq_length())
    except ValueError:  # a cache of states alone knows no length
        return 0


def by_name(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of `model`, all by name."""
    if not args:
        return kwargs
    return dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | kwargs


def inputs_of(base: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Token ids [batch, tokens], or embeddings [batch, tokens, width] where those are given."""
    return next(base[name] for name in ("input_ids", "inputs_embeds") if base.get(name) is not None)


def mask_of(base: Mapping[str, Any], pad_id: Any = None) -> torch.Tensor:
    """The attention mask [batch, slots] of a forward call and what its cache holds; all real where none is.

    Args:
        base: the call's inputs.
        pad_id: of several rows without a mask and a cache, what stands at their ends with this id is padding.

    Raises:
        PositionError: the mask does not cover the cached and the new tokens, or padding ids stand elsewhere
            than at the ends of rows that have no mask.
    """
    inputs, mask = inputs_of(base), base.get("attention_mask")
    slots = cached_length(base) + inputs.shape[1]
    if mask is None:
        if pad_id is not None and inputs.ndim == 2 and len(inputs) > 1 and cache_of(base) is None:
            return _without_padding_ends(inputs, pad_id)
        return torch.ones(inputs.shape[0], slots, dtype=torch.long, device=inputs.device)
    if not isinstance(mask, torch.Tensor):
        raise PositionError(f"attention_mask must be a tensor [batch, tokens], found {type(mask).__name__}")
    if mask.ndim == 2 and mask.shape[1] != slots:
        cache = cache_of(base)
        held = (
            "" if cache is None else f" and a {type(cache).__name__} that says it holds {cached_length(base)}"
        )
        raise PositionError(
            f"attention_mask has {mask.shape[1]} columns, for {inputs.shape[1]} tokens{held}; expected one "
            "for each cached and each new token"
        )
    return mask


def _without_padding_ends(ids: torch.Tensor, pad_id: Any) -> torch.Tensor:
    pads = torch.isin(ids, torch.as_tensor(pad_id, device=ids.device))
    ends = pads.flip(1).cumprod(1).flip(1).bool()
    # What all rows begin with is a token of the text: the longest row has no padding before it.
    begins = pads.all(0).cumprod(0).bool()
    if (elsewhere := pads & ~ends & ~begins).any():
        rows = elsewhere.any(1).nonzero().flatten().tolist()
        raise PositionError(
            f"rows {rows} hold the padding id {pad_id} before other tokens, and without attention_mask it "
            "cannot be told whether that is padding or text; pass attention_mask [batch, tokens]"
        )
    return (~ends).long()


def prompt_lengths_of(lengths: Any, base: Mapping[str, Any]) -> torch.Tensor:
    """The prompt lengths [rows] of a call, checked against its rows.

    Raises:
        ValueError: not one whole positive number a row, or more than the row has tokens.
    """
    inputs = inputs_of(base)
    rows, count = inputs.shape[:2]
    expected = f"prompt_lengths must be {rows} positive numbers, found {lengths!r:.80}"
    try:
        found = torch.as_tensor(lengths, device=inputs.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(expected) from error
    if found.dtype == torch.bool or found.is_floating_point() or found.is_complex():
        raise ValueError(expected)
    found = found.long()
    if found.shape != (rows,) or (found < 1).any():
        raise ValueError(expected)
    # With a cache a row is longer than its input_ids, and only a mask of the whole row says how long.
    mask = base.get("attention_mask")
    if mask is None and cache_of(base) is not None:
        return found
    within = found.new_full((rows,), count) if mask is None else mask.sum(1).to(found.device)
    if (found > within).any():
        raise ValueError(f"prompt_lengths {found.tolist()} exceed the rows' {within.tolist()} tokens")
    return found


class TokenTracker:
    """Follows one run (a `generate`, or a teacher-forced pass) and says where each call's tokens stand.

    Args:
        attention_mask: [batch, slots], 1 on real tokens, of the whole input of the run.
        prompt_lengths: [batch], real tokens in each row's prompt; None where it is not known.
        generating: further slots will follow those of the mask.
        end_ids: token ids that end a generated row: they and what follows them decide nothing, so they count
            as padding, as if the row had been generated alone. What ends rows otherwise is told to `ended`.
        is_sequential: each call begins where the last one ended: no drafts that may be taken back.

    Attributes:
        tables: Bool[rows, positions] of the rules that only the rows' texts and sources decide.
        current: positions of the forward call that is under way.
        error: why a call was refused. Continuous batching calls the model in a thread that swallows it.
    """

    def __init__(
        self,
        attention_mask: torch.Tensor,
        prompt_lengths: torch.Tensor | None,
        *,
        generating: bool,
        end_ids: Iterable[int] = (),
        is_sequential: bool = False,
    ) -> None:
        if attention_mask.ndim != 2:
            raise PositionError(
                "attention_mask must be [batch, tokens]; padding cannot be told from a 4-D mask"
            )
        mask = attention_mask.bool()
        self.slots = mask.shape[1]
        self.generating = generating
        self.is_sequential = is_sequential
        self.real = mask
        self.index = mask.long().cumsum(1) - 1
        self.length = mask.sum(1)
        self.prompt_lengths = prompt_lengths
        ends = sorted(set(end_ids))
        self._ends = torch.tensor(ends, device=mask.device) if ends else None
        self._end_slot: torch.Tensor | None = None
        self._ended_slot: torch.Tensor | None = None
        # Of each cache that a call of this run was given, how many slots have gone into it.
        self._filled: dict[int, tuple[Any, int]] = {}
        self._end = 0
        self.tables: dict[Rule, torch.Tensor] = {}
        self.current: Tokens | None = None
        self.error: SubveneError | None = None

    def observe(
        self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Read a call's extent from its inputs and cache; for a forward pre-hook on the whole model.

        Returns:
            The call's arguments, all by name.
        """
        kwargs = by_name(model, args, kwargs)
        try:
            self._observe(kwargs)
        except PositionError as error:
            self.error = error
            raise
        return kwargs

    def _observe(self, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids")
        inputs = ids if ids is not None else kwargs.get("inputs_embeds")
        if inputs is None:
            raise PositionError(
                "a forward call carries neither input_ids nor inputs_embeds, so nothing can be placed"
            )
        start = self._start(kwargs, inputs.shape[1])
        self.refuse_packed(kwargs, start)
        self.current = self.place(start, inputs.shape[0], inputs.shape[1], ids)

    def _start(self, kwargs: Mapping[str, Any], count: int) -> int:
        """The slot at which a call begins: what its cache says, held against what the run has put into it."""
        cache, start = cache_of(kwargs), cached_length(kwargs)
        if cache is None:
            if self._filled and self.generating:
                raise PositionError(
                    "a forward call without a cache amid a generation that uses one is none of its steps; "
                    "for a call of your own inside a run use `with m.disabled()` (the untouched model) or "
                    "`m(…)`"
                )
            self._end = count
            return 0
        if self.is_sequential:
            filled = self._end  # a model may put a cache of its own in the place of the one that it was given
        else:
            _, filled = self._filled.get(id(cache), (None, 0))
        if filled and start != filled:
            if start == 0 and self.is_sequential:
                start = filled  # MiniMax's cache, and those of states alone, know no length
            elif not 0 < start < filled or self.is_sequential:
                raise PositionError(
                    f"{type(cache).__name__} says that it holds {start} tokens, after {filled} of this run "
                    "went into it; tokens cannot be placed by it. Generate with use_cache=False"
                )
        self._end = start + count
        self._filled[id(cache)] = (cache, self._end)  # held, so that no other object takes its id
        return start

    def ended(self, rows: torch.Tensor, slots: int) -> None:
        """Take notice of rows [batch] that something other than `end_ids` has ended at length `slots`.

        As if each had been generated alone, its last token decides nothing.
        """
        never = torch.iinfo(torch.long).max
        slot = torch.where(rows, slots - 1, never)
        self._ended_slot = slot if self._ended_slot is None else torch.minimum(self._ended_slot, slot)

    def extend(self, attention_mask: torch.Tensor) -> None:
        """Take a longer mask [batch, slots] of the same rows, of a sequence that goes on."""
        mask = attention_mask.bool()
        if mask.shape[0] != self.real.shape[0]:
            raise PositionError(
                f"a forward call goes on with a cache of {list(self.real.shape)} rows and slots under a mask "
                f"of shape {list(mask.shape)}; the mask has to cover what is cached and what is new"
            )
        self.slots, self.real = mask.shape[1], mask
        self.index, self.length = mask.long().cumsum(1) - 1, mask.sum(1)

    def place(self, start: int, batch: int, count: int, ids: torch.Tensor | None = None) -> Tokens:
        """Positions of `count` tokens that begin at slot `start` of every row."""
        rows = self.real.shape[0]
        if batch % rows:
            raise PositionError(
                f"the run has {rows} rows and a forward call has {batch}; rows packed or dropped on the "
                "way cannot be told apart, so the edit would reach the wrong request"
            )
        repeat = batch // rows
        end = start + count
        if end > self.slots and not self.generating:
            raise PositionError(f"a forward call reaches slot {end} of a sequence of {self.slots}")
        index, real = self.index[:, start:end], self.real[:, start:end]
        if end > self.slots:
            first = max(start, self.slots)
            ahead = torch.arange(first - self.slots, end - self.slots, device=self.index.device)
            index = torch.cat([index, self.length.unsqueeze(1) + ahead], 1)
            real = torch.cat([real, real.new_ones(rows, end - first)], 1)
        tables = self.tables
        prompt, length = self.prompt_lengths, None if self.generating else self.length
        if repeat > 1:
            index, real = index.repeat_interleave(repeat, 0), real.repeat_interleave(repeat, 0)
            prompt = None if prompt is None else prompt.repeat_interleave(repeat)
            tables = {rule: table.repeat_interleave(repeat, 0) for rule, table in tables.items()}
        if self.generating and ids is not None:
            real = real & self._unfinished(start, ids)
        return Tokens(
            index=index,
            real=real,
            prompt_length=prompt,
            length=length,
            after_prompt=self.generating and start >= self.slots,
            start=start,
            tables=tables,
        )

    def _unfinished(self, start: int, ids: torch.Tensor) -> torch.Tensor:
        """Bool[batch, tokens], false from a row's end on.

        The slot of each row's end is kept rather than a flag, so that a call which goes back (a rejected
        draft, a pass without cache) overwrites what an earlier one saw.
        """
        slot = torch.arange(start, start + ids.shape[1], device=ids.device).unsqueeze(0)
        generated = slot >= self.slots
        filling = torch.zeros_like(ids, dtype=torch.bool)
        if self._ended_slot is not None:
            filling = slot >= self._ended_slot.unsqueeze(1)
        if self._ends is not None:
            never = torch.iinfo(torch.long).max
            ended = torch.where(torch.isin(ids, self._ends) & generated, slot, never).amin(1)
            if self._end_slot is not None:
                ended = torch.minimum(ended, torch.where(self._end_slot < start, self._end_slot, never))
            self._end_slot = ended
            filling = filling | (slot >= ended.unsqueeze(1))
        return ~filling

    def refuse_packed(self, kwargs: dict[str, Any], start: int) -> None:
        """Raise `PositionError` if a call packs several requests into a row."""
        packed = [key for key in PACKED_KEYWORDS if kwargs.get(key) is not None]
        ids = kwargs.get("position_ids")
        if ids is not None and ids.ndim == 2 and ids.shape[1] > 1 and ids.shape[0] in (1, self.real.shape[0]):
            real = self.real[:, start : start + ids.shape[1]]
            if real.shape[1] == ids.shape[1]:
                both_real = real[:, 1:] & real[:, :-1]
                if ((ids.diff(dim=1) <= 0) & both_real).any():
                    packed.append("position_ids that start again within a row")
        if packed:
            raise PositionError(
                f"this forward call packs several requests into a row ({', '.join(packed)}); subvene places "
                "tokens by row and would edit the wrong request: use padded batches (plain generate, not "
                "continuous batching)"
            )
