"""Token roles in generation and in scoring: who is prompt, cursor, response or padding.

The only place that turns a batch and a cache into absolute positions. It never looks at how many tokens a
forward call carries to decide what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any

import torch

from subvene.interventions import Tokens
from subvene.interventions.positions import Rule
from subvene.runner.edits.forward_call import PACKED_KEYWORDS, ForwardCall
from subvene.specs import SubveneError


class PositionError(SubveneError, ValueError):
    """The positions of the tokens of a forward call cannot be told."""


def mask_of(call: ForwardCall, pad_id: Any = None) -> torch.Tensor:
    """The attention mask [batch, slots] of a forward call and what its cache holds; all real where none is.

    Args:
        call: the forward call.
        pad_id: of several rows without a mask and a cache, what stands at their ends with this id is padding.

    Raises:
        PositionError: the mask does not cover the cached and the new tokens, or padding ids stand elsewhere
            than at the ends of rows that have no mask.
    """
    inputs, mask = call.inputs, call.attention_mask
    slots = call.held + inputs.shape[1]
    if mask is None:
        if pad_id is not None and inputs.ndim == 2 and len(inputs) > 1 and call.cache is None:
            return _without_padding_ends(inputs, pad_id)
        return torch.ones(inputs.shape[0], slots, dtype=torch.long, device=inputs.device)
    if not isinstance(mask, torch.Tensor):
        raise PositionError(f"attention_mask must be a tensor [batch, tokens], found {type(mask).__name__}")
    if mask.ndim == 2 and mask.shape[1] != slots:
        cache = call.cache
        held = "" if cache is None else f" and a {type(cache).__name__} that says it holds {call.held}"
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


def prompt_lengths_of(lengths: Any, call: ForwardCall) -> torch.Tensor:
    """The prompt lengths [rows] of a call, checked against its rows.

    Raises:
        ValueError: not one whole positive number a row, or more than the row has tokens.
    """
    inputs = call.inputs
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
    mask = call.attention_mask
    if mask is None and call.cache is not None:
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
        stops_when_ended: no call follows once every row has ended by `end_ids`.

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
        stops_when_ended: bool = False,
    ) -> None:
        if attention_mask.ndim != 2:
            raise PositionError(
                "attention_mask must be [batch, tokens]; padding cannot be told from a 4-D mask"
            )
        mask = attention_mask.bool()
        self.slots = mask.shape[1]
        self.generating = generating
        self.is_sequential, self._stops_when_ended = is_sequential, stops_when_ended
        self.real = mask
        self.index = mask.long().cumsum(1) - 1
        self.length = mask.sum(1)
        self.prompt_lengths = prompt_lengths
        ends = sorted(set(end_ids))
        self._ends = torch.tensor(ends, device=mask.device) if ends else None
        self._end_slot: torch.Tensor | None = None
        # Bool[batch, 1], the rows that `end_ids` have ended, where no call can go back.
        self._ended: torch.Tensor | None = None
        self._ended_slot: torch.Tensor | None = None
        # Of each cache that a call of this run was given, how many slots have gone into it.
        self._filled: dict[int, tuple[Any, int]] = {}
        self._end = 0
        self.tables: dict[Rule, torch.Tensor] = {}
        self._shared: dict[Hashable, Any] = {}
        self.current: Tokens | None = None
        self.error: SubveneError | None = None

    @property
    def is_behind_the_input(self) -> bool:
        """Whether the next call of a sequential generation begins behind what the run was given."""
        return self.generating and self.is_sequential and self._end >= self.slots

    def observe(self, call: ForwardCall) -> None:
        """Read a call's extent from its inputs and cache, before it is made."""
        try:
            self._observe(call)
        except PositionError as error:
            self.error = error
            raise

    def _observe(self, call: ForwardCall) -> None:
        if not call.is_placed:
            raise PositionError(
                "a forward call carries neither input_ids nor inputs_embeds, so nothing can be placed"
            )
        rows, count = call.inputs.shape[:2]
        start = self._start(call, count)
        self.refuse_packed(call, start)
        self.current = self.place(start, rows, count, call.input_ids)

    def _start(self, call: ForwardCall, count: int) -> int:
        """The slot at which a call begins: what its cache says, held against what the run has put into it."""
        cache, start = call.cache, call.held
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
        tables, prompt = self.tables, self.prompt_lengths
        if repeat > 1:
            prompt = None if prompt is None else prompt.repeat_interleave(repeat)
            tables = {rule: table.repeat_interleave(repeat, 0) for rule, table in tables.items()}
        all_real = self.generating and start >= self.slots and (ids is None or self._none_has_ended(batch))
        index: torch.Tensor | Callable[[], torch.Tensor] = partial(self._index_of, start, end, repeat)
        real: torch.Tensor | Callable[[], torch.Tensor] = partial(self._real_of, start, end, repeat)
        if not self.generating:  # now, since `extend` may come before somebody asks
            index, real = self._index_of(start, end, repeat), self._real_of(start, end, repeat)
        if self.generating and ids is not None and not all_real and end > self.slots:
            # Now, since it depends on what the calls before it have seen.
            unfinished = self._unfinished(start, ids)
            real = unfinished if start >= self.slots else self._real_of(start, end, repeat) & unfinished
        return Tokens(
            index=index,
            real=real,
            prompt_length=prompt,
            length=None if self.generating else self.length,
            after_prompt=self.generating and start >= self.slots,
            start=start,
            tables=tables,
            shape=(batch, count),
            all_real=all_real,
            run=self._shared,
        )

    def _index_of(self, start: int, end: int, repeat: int) -> torch.Tensor:
        """Positions of slots of each row, [rows × repeat, tokens]: those of the input, and what follows."""
        index = self.index[:, start:end]
        if end > self.slots:
            ahead = torch.arange(max(start - self.slots, 0), end - self.slots, device=index.device)
            index = torch.cat([index, self.length.unsqueeze(1) + ahead], 1)
        return index.repeat_interleave(repeat, 0) if repeat > 1 else index

    def _real_of(self, start: int, end: int, repeat: int) -> torch.Tensor:
        """Bool[rows × repeat, tokens], slots that hold tokens of the text; those that follow the input do."""
        real = self.real[:, start:end]
        if end > self.slots:
            real = torch.cat([real, real.new_ones(len(real), end - max(start, self.slots))], 1)
        return real.repeat_interleave(repeat, 0) if repeat > 1 else real

    def _none_has_ended(self, batch: int) -> bool:
        """Whether it is known on the host that no row has ended."""
        if batch == 1 and self.is_sequential and self._stops_when_ended:
            return True  # or there would be no call
        return self._ends is None and self._ended_slot is None

    def _unfinished(self, start: int, ids: torch.Tensor) -> torch.Tensor:
        """Bool[batch, tokens], false from a row's end on.

        The slot of each row's end is kept rather than a flag, so that a call which goes back (a rejected
        draft, a pass without cache) overwrites what an earlier one saw.
        """
        if self.is_sequential and start >= self.slots and ids.shape[1] == 1:
            return self._going_on(start, ids)
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

    def _going_on(self, start: int, ids: torch.Tensor) -> torch.Tensor:
        """The same for one token a row, where no call goes back."""
        if self._ends is not None:
            ends = torch.isin(ids, self._ends)
            self._ended = ends if self._ended is None else self._ended | ends
        ended = self._ended
        if self._ended_slot is not None:
            otherwise = (self._ended_slot <= start).unsqueeze(1)
            ended = otherwise if ended is None else ended | otherwise
        return torch.ones_like(ids, dtype=torch.bool) if ended is None else ~ended

    def refuse_packed(self, call: ForwardCall, start: int) -> None:
        """Raise `PositionError` if a call packs several requests into a row."""
        packed = [key for key in PACKED_KEYWORDS if key in call.given]
        ids = call.position_ids
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
