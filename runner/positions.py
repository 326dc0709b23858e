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
from subvene.specs import SubveneError

_PACKED_KEYWORDS = ("cu_seq_lens_q", "cu_seq_lens_k", "block_table", "read_index", "write_index", "seq_idx")


class PositionError(SubveneError, ValueError):
    """The positions of the tokens of a forward call cannot be told."""


def cached_length(inputs: Mapping[str, Any]) -> int:
    """Tokens that a forward call's `past_key_values` holds; 0 without a cache."""
    cache = inputs.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())


class TokenTracker:
    """Follows one run (a `generate`, or a teacher-forced pass) and says where each call's tokens stand.

    Args:
        attention_mask: [batch, slots], 1 on real tokens, of the whole input of the run.
        prompt_lengths: [batch], real tokens in each row's prompt; None where it is not known.
        generating: further slots will follow those of the mask.
        end_ids: token ids that end a generated row: they and what follows them decide nothing, so they count
            as padding, as if the row had been generated alone.
        pad_id: the id that fills up a row which something other than `end_ids` has finished (a stop string);
            None where only they can, and the id is then a token like any other.

    Attributes:
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
        pad_id: int | None = None,
    ) -> None:
        if attention_mask.ndim != 2:
            raise PositionError(
                "attention_mask must be [batch, tokens]; padding cannot be told from a 4-D mask"
            )
        mask = attention_mask.bool()
        self.slots = mask.shape[1]
        self.generating = generating
        self.real = mask
        self.index = mask.long().cumsum(1) - 1
        self.length = mask.sum(1)
        self.prompt_lengths = prompt_lengths
        ends = sorted(set(end_ids))
        self._ends = torch.tensor(ends, device=mask.device) if ends else None
        self._pad_id = pad_id if pad_id is not None and pad_id not in ends else None
        self._end_slot: torch.Tensor | None = None
        self.current: Tokens | None = None
        self.error: PositionError | None = None

    def observe(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook on the whole model: reads the call's extent from its inputs and cache."""
        if args:
            kwargs = dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | kwargs
        try:
            self._observe(kwargs)
        except PositionError as error:
            self.error = error
            raise

    def _observe(self, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids")
        inputs = ids if ids is not None else kwargs.get("inputs_embeds")
        if inputs is None:
            raise PositionError(
                "a forward call carries neither input_ids nor inputs_embeds, so nothing can be placed"
            )
        start = cached_length(kwargs)
        self._refuse_packed(kwargs, start)
        self.current = self.place(start, inputs.shape[0], inputs.shape[1], ids)

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
        prompt, length = self.prompt_lengths, None if self.generating else self.length
        if repeat > 1:
            index, real = index.repeat_interleave(repeat, 0), real.repeat_interleave(repeat, 0)
            prompt = None if prompt is None else prompt.repeat_interleave(repeat)
        if self.generating and ids is not None:
            real = real & self._unfinished(start, ids)
        return Tokens(
            index=index,
            real=real,
            prompt_length=prompt,
            length=length,
            after_prompt=self.generating and start >= self.slots,
            start=start,
        )

    def _unfinished(self, start: int, ids: torch.Tensor) -> torch.Tensor:
        """Bool[batch, tokens], false from a row's end on.

        The slot of each row's end is kept rather than a flag, so that a call which goes back (a rejected
        draft, a pass without cache) overwrites what an earlier one saw.
        """
        slot = torch.arange(start, start + ids.shape[1], device=ids.device).unsqueeze(0)
        generated = slot >= self.slots
        filling = torch.zeros_like(ids, dtype=torch.bool)
        if self._ends is not None:
            never = torch.iinfo(torch.long).max
            ended = torch.where(torch.isin(ids, self._ends) & generated, slot, never).amin(1)
            if self._end_slot is not None:
                ended = torch.minimum(ended, torch.where(self._end_slot < start, self._end_slot, never))
            self._end_slot = ended
            filling = slot >= ended.unsqueeze(1)
        if self._pad_id is not None:
            filling = filling | ((ids == self._pad_id) & generated)
        return ~filling

    def _refuse_packed(self, kwargs: dict[str, Any], start: int) -> None:
        packed = [key for key in _PACKED_KEYWORDS if kwargs.get(key) is not None]
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
