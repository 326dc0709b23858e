"""The slots that a run has passed: where each stood, and which rule selected it there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

import torch

from subvene.interventions import Tokens
from subvene.interventions.positions import Rule


@dataclass
class _Call:
    """A forward call, and how many of its first tokens no later call has passed again."""

    tokens: Tokens
    count: int
    rules: set[Rule] = field(default_factory=set)


class Passed:
    """Where the tokens of a run's calls stood.

    A slot that is passed again is judged again: the last pass is the one that counts. What an earlier pass
    had seen beyond it (rejected drafts) is no longer part of the sequence. A decoding step of which
    everything is known on the host leaves nothing to compute.

    Attributes:
        end: what came after so many slots is forgotten; None: nothing is.
        prompt_lengths: Long[rows]; None where they are not known, or nothing has run.
    """

    def __init__(self) -> None:
        self.end: int | None = None
        self.prompt_lengths: torch.Tensor | None = None
        self._calls: list[_Call] = []
        self._last: Tokens | None = None
        # Rule → the selection in the first calls, and how many these are.
        self._joined: dict[Rule, tuple[int, torch.Tensor]] = {}

    @property
    def rows(self) -> int:
        """Rows of the calls; 0 before the first."""
        return self._calls[0].tokens.shape[0] if self._calls else 0

    @property
    def slots(self) -> int:
        """How many there are, from the beginning of the rows."""
        return self._calls[-1].tokens.start + self._calls[-1].count if self._calls else 0

    def note(self, tokens: Tokens, rule: Rule) -> None:
        """Take notice that an edit with `rule` has run in the call of `tokens`."""
        if tokens is not self._last:
            self._last = tokens
            self.prompt_lengths = tokens.prompt_length
            while self._calls and self.slots > tokens.start:
                self._joined.clear()
                self._calls[-1].count = tokens.start - self._calls[-1].tokens.start
                if self._calls[-1].count <= 0:
                    self._calls.pop()
            self._calls.append(_Call(tokens, tokens.shape[1]))
        self._calls[-1].rules.add(rule)

    def index(self) -> torch.Tensor:
        """Long[rows, slots]: the position of each in its own row; 0 where nothing was noted."""
        pieces: list[torch.Tensor] = []
        slot = 0
        for is_after, group in groupby(self._calls, lambda call: call.tokens.after_prompt):
            calls = list(group)
            first = calls[0].tokens
            # What is generated follows without a gap.
            parts = [first.index[:, :1].cpu()] if is_after else [c.tokens.index[:, : c.count] for c in calls]
            start = first.start
            pieces.append(torch.zeros(self.rows, start - slot, dtype=torch.long))
            slot = calls[-1].tokens.start + calls[-1].count
            if is_after:
                pieces.append(parts[0] + torch.arange(slot - start))
            else:
                pieces += _with_gaps([(c.tokens.start, p.cpu()) for c, p in zip(calls, parts, strict=True)])
        return torch.cat(pieces, 1)

    def selected(self, rule: Rule) -> torch.Tensor | None:
        """Bool[rows, slots] of the tokens that `rule` has selected; None if no edit with it has run."""
        if not any(rule in call.rules for call in self._calls):
            return None
        done, before = self._joined.get(rule, (0, None))
        device = self._calls[0].tokens.device
        pieces = [] if before is None else [before]
        slot = 0 if before is None else before.shape[1]
        for known, calls in _alike(self._calls[done:], rule):
            first, end = calls[0].tokens, calls[-1].tokens.start + calls[-1].count
            pieces.append(torch.zeros(self.rows, first.start - slot, dtype=torch.bool, device=device))
            pieces.append(
                first.mask(rule)[:, : calls[0].count].to(device)
                if known is None
                else torch.full((self.rows, end - first.start), known, device=device)
            )
            slot = end
        mask = torch.cat(pieces, 1)
        # The last call may still be under way.
        last = self._calls[-1]
        self._joined[rule] = len(self._calls) - 1, mask[:, : last.tokens.start]
        if self.end is not None and self.end < mask.shape[1]:
            mask = mask.clone()
            mask[:, self.end :] = False
        return mask


def _alike(calls: list[_Call], rule: Rule) -> Iterator[tuple[bool | None, list[_Call]]]:
    """Neighbouring calls of which `rule` is known on the host to select all or nothing; others one by one."""
    group: list[_Call] = []
    before: bool | None = None
    for call in calls:
        known = call.tokens.selects_all(rule) or None if rule in call.rules else False
        follows = bool(group) and group[-1].tokens.start + group[-1].count == call.tokens.start
        if group and (known is None or known is not before or not follows):
            yield before, group
            group = []
        group.append(call)
        before = known
    if group:
        yield before, group


def _with_gaps(parts: list[tuple[int, torch.Tensor]]) -> list[torch.Tensor]:
    """Columns that begin at these slots, with zeros for the slots between them."""
    filled: list[torch.Tensor] = []
    slot = parts[0][0]
    for start, part in parts:
        filled += [part.new_zeros(part.shape[0], start - slot), part]
        slot = start + part.shape[1]
    return filled
