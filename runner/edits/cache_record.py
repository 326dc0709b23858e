"""What a cache of keys and values was filled with, so that no run goes on from one that was filled otherwise.

The record stands on the cache itself, and goes where it goes (a copy, another run). A cache without one was
filled by the model without edits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from subvene.runner.edits.forward_call import ForwardCall, cached_length
from subvene.runner.edits.positions import PositionError, TokenTracker
from subvene.runner.edits.recorder import Recorder
from subvene.specs import Positions, SubveneError

_NAME = "subvene_record"

# Edit → its position rule and the strength in force, scalar or [rows].
Edits = Mapping[str, tuple[Positions, torch.Tensor]]


class CacheError(SubveneError, ValueError):
    """A cache holds tokens that were edited otherwise than this run would have edited them."""


@dataclass(frozen=True)
class CacheRecord:
    """What was done to the tokens that a cache holds.

    Attributes:
        applied: edit → the strength at which each slot was edited, [rows, slots]; 0 where it was not.
        lies: whether the cache says that it holds nothing, though the run has filled it.
        contents: what tells its rows apart, [rows, slots]; None where that cannot be read.
        is_padded: whether some of its slots hold padding.
    """

    applied: dict[str, torch.Tensor] = field(default_factory=dict)
    lies: bool = False
    contents: torch.Tensor | None = None
    is_padded: bool = False

    @classmethod
    def of(cls, edits: Edits, recorder: Recorder, tracker: TokenTracker, first: int) -> CacheRecord:
        """The record of a run whose first call began at slot `first`.

        What the caches held before then is what the run would have put there, or `check` had refused it.
        """
        applied = {}
        rows = tracker.real.shape[0]
        for name, (rule, strength) in edits.items():
            mask = tracker.place(0, rows, first).mask(rule)
            recorded = recorder.selected(rule)
            if recorded is not None:
                before = _repeated(mask, len(recorded)).to(recorded.device)
                mask = torch.cat([before, recorded[:, first:]], 1)
            applied[name] = _scaled(mask, strength)
        return cls(applied, is_padded=not bool(tracker.real.all()))

    def put(self, cache: Any) -> None:
        """Leave the record on a cache that the run has filled."""
        lies = not cached_length(cache)
        setattr(cache, _NAME, replace(self, lies=lies, contents=_contents(cache)))

    def check(self, cache: Any, edits: Edits, start: int, tracker: TokenTracker) -> dict[str, int]:
        """Refuse a run whose edits are not those of the first `start` slots of the cache.

        Returns:
            How many tokens of these each edit has edited.

        Raises:
            PositionError: the cache holds more than it says.
            CacheError: naming a row and token at which they differ.
        """
        if self.lies:
            raise PositionError(
                "past_key_values says that it holds nothing, though it was filled; tokens cannot be placed "
                "by it. Pass the whole sequence without a cache"
            )
        rows = tracker.real.shape[0]
        cached = tracker.place(0, rows, start)
        real = cached.real
        expected = {name: _scaled(cached.mask(rule), strength) for name, (rule, strength) in edits.items()}
        order = self._order(cache)
        for name in {**expected, **self.applied}:
            wanted = expected.get(name)
            held = self.applied.get(name)
            if held is not None and order is not None:
                held = held[order.to(held.device)]
            held = torch.zeros(rows, start) if held is None else _repeated(_cut(held, start), rows).cpu()
            wanted = torch.zeros(rows, start) if wanted is None else wanted.cpu()
            differs = (held != wanted) & real.cpu()
            if differs.any():
                row, slot = differs.nonzero()[0].tolist()
                edit = name.partition(".")[2]
                raise CacheError(
                    f"past_key_values was filled otherwise than this run would fill it: token {slot} of row "
                    f"{row} was edited by {edit} at strength {float(held[row, slot]):g}, and this run edits "
                    f"it at {float(wanted[row, slot]):g}. Pass the whole sequence without a cache; or, to go "
                    "on with one long response, the prompt_lengths and strengths of the run that filled it"
                )
        return {name: int(((strengths != 0) & real).sum()) for name, strengths in expected.items()}

    def _order(self, cache: Any) -> torch.Tensor | None:
        """Which recorded row each row of the cache is (they may have been selected and repeated since).

        None where rows cannot be compared, or nothing was edited.
        """
        now = _contents(cache)
        if self.contents is None or now is None or not any(bool(a.any()) for a in self.applied.values()):
            return None
        slots = min(now.shape[1], self.contents.shape[1])
        found, recorded = now[:, None, :slots], self.contents[None, :, :slots]
        same = torch.isclose(found, recorded, rtol=1e-4, atol=1e-4).all(-1)
        if not same.any(1).all():
            raise CacheError(
                "past_key_values holds other tokens than the run left in it, whose edits are known; pass the "
                "whole sequence without a cache"
            )
        order = same.int().argmax(1)
        own = torch.arange(len(order), device=order.device)
        if len(own) <= same.shape[1]:
            order = torch.where(same[own, own], own, order)
        return order


def record_of(cache: Any) -> CacheRecord:
    """What is known of a cache; of one without a record, that nothing was edited."""
    return getattr(cache, _NAME, None) or CacheRecord()


def refuse_unmasked(call: ForwardCall) -> None:
    """Refuse a call without a mask that goes on from a cache with padding in it.

    The model would read the padding as text, and the tokens that follow would be counted from it.

    Raises:
        PositionError: saying what to pass.
    """
    cache = call.cache
    if call.attention_mask is None and cache is not None and record_of(cache).is_padded:
        raise PositionError(
            "past_key_values holds padding, which without attention_mask is read as text; pass "
            "attention_mask [batch, tokens] of the cached and the new tokens, 1 on real ones"
        )


def refuse_edited(cache: Any) -> None:
    """Refuse to let the untouched model go on from a cache that was filled under edits.

    Raises:
        CacheError: naming the edit.
    """
    held = 0 if cache is None else cached_length(cache)
    for name, applied in record_of(cache).applied.items():
        if held and applied[:, :held].any():
            raise CacheError(
                f"past_key_values holds tokens that {name.partition('.')[2]} edited, and this run is without "
                "edits: its numbers would be neither. Pass the whole sequence without a cache"
            )


def _contents(cache: Any) -> torch.Tensor | None:
    """A number for each row and slot that other tokens, or tokens edited otherwise, do not have."""
    for layer in reversed(getattr(cache, "layers", [])):
        keys = getattr(layer, "keys", None)
        if isinstance(keys, torch.Tensor) and keys.ndim == 4 and not getattr(layer, "is_sliding", False):
            return keys.detach().sum((1, 3), dtype=torch.float32)
    return None


def _scaled(mask: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    strength = strength.detach().to(mask.device, torch.float32)
    if strength.ndim:
        strength = _repeated(strength, len(mask)).unsqueeze(1)
    return torch.where(mask, strength, 0.0)


def _repeated(rows: torch.Tensor, count: int) -> torch.Tensor:
    """`rows` for a batch that generation has widened."""
    if len(rows) == count:
        return rows
    if count % len(rows):
        raise CacheError(
            f"past_key_values was filled with {len(rows)} rows, and this run has {count}; rows cannot be "
            "told apart"
        )
    return rows.repeat_interleave(count // len(rows), 0)


def _cut(applied: torch.Tensor, slots: int) -> torch.Tensor:
    """The first slots; what was put in since, by the model without a run, was not edited."""
    return torch.nn.functional.pad(applied, (0, max(slots - applied.shape[1], 0)))[:, :slots]
