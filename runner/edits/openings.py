"""How far the gates of a run are open: what they have read so far, and what that decides.

A gate decides by the absolute position of a token and by what was read at the position that decides it: the
cursor, the turn's cursor, or the token itself. What was read is kept by position and what was decided by
slot, so that a call which passes tokens again (no cache, rejected drafts) puts itself in the place of what an
earlier one had seen, and a pass over a whole text finds what generation had found token by token.
"""

from __future__ import annotations

import torch

from subvene.interventions import Tokens
from subvene.interventions.gating import Gating, Reading
from subvene.interventions.positions import Gated, Rule, from_table
from subvene.runner.edits.gate_receipt import GateReceipt, NodeReceipt
from subvene.specs import SubveneError


class GateError(SubveneError, ValueError):
    """A gate cannot be decided in this run."""


TURNS = Gated("the assistant's turns", "all")
"""Names, among the tables of a run, Bool[rows, positions] of the cursors of the assistant's turns."""


class _Values:
    """What one reading has read in a run."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.seen: Tokens | None = None
        # [rows, positions], and one column more for what has no position.
        self._by_position: torch.Tensor | None = None
        self._sum: torch.Tensor | None = None
        self._count: torch.Tensor | None = None
        self._summed = 0

    @torch.no_grad()
    def see(self, whole: torch.Tensor, tokens: Tokens) -> None:
        """Read the activation [batch, tokens, width] of a module in a call."""
        rule = self.reading.rule
        if rule.decide == "once" and tokens.after_prompt and self.seen is not None:
            return  # it is decided
        h = self.reading.of_site(whole)
        index, real = tokens.index.to(h.device), tokens.real.to(h.device)
        if rule.of_mean:
            h = self._mean(h, index, real, tokens)
        values = self.reading.measurement(h)
        self._put(values.expand(index.shape), index, real, tokens.start + index.shape[1])
        self.seen = tokens

    def at(self, index: torch.Tensor) -> torch.Tensor:
        """What was read at positions [batch, n]."""
        if self._by_position is None:
            raise GateError(f"{self.reading.component} was never read")
        return from_table(self._by_position[:, :-1], index.to(self._by_position.device))

    def _put(self, values: torch.Tensor, index: torch.Tensor, real: torch.Tensor, end: int) -> None:
        kept = self._by_position
        if kept is None:
            kept = values.new_full((len(values), max(64, 2 * end) + 1), torch.nan)
        elif len(kept) != len(values):
            raise GateError(
                f"{self.reading.component}: the run began with {len(kept)} rows and a call has "
                f"{len(values)}; what a gate has read of which row cannot be told"
            )
        elif kept.shape[1] <= end:
            more = values.new_full((len(kept), end), torch.nan)
            kept = torch.cat([kept[:, :-1], more, kept[:, -1:]], 1)
        nowhere = kept.shape[1] - 1
        self._by_position = kept.scatter(1, torch.where(real, index, nowhere), values.to(kept))

    def _mean(self, h: torch.Tensor, index: torch.Tensor, real: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        """The mean over the prompt's tokens so far, without the first unless it is the only one."""
        if tokens.prompt_length is None:
            raise GateError("the mean of a prompt needs the prompts' lengths, and none were given")
        prompt = tokens.prompt_length.to(h.device).unsqueeze(1)
        counted = real & (index < prompt) & ((index > 0) | (prompt == 1))
        total = (h * counted.unsqueeze(-1)).sum(1)
        count = counted.sum(1)
        if tokens.start and self._sum is not None and self._count is not None:
            if tokens.start != self._summed:
                raise GateError(
                    "a call goes back within the prompt whose mean a gate reads; pass the prompt from its "
                    "beginning"
                )
            total, count = total + self._sum, count + self._count
        self._sum, self._count, self._summed = total, count, tokens.start + h.shape[1]
        return (total / count.clamp_min(1).unsqueeze(-1)).unsqueeze(1)


class Openings:
    """How far the gate of one declared intervention is open in one run.

    Args:
        name: of the intervention.
        gating: its gate and schedule.
        rule: what selects the tokens that it is asked for.
    """

    def __init__(self, name: str, gating: Gating, rule: Rule) -> None:
        self.name, self.gating = name, gating
        self.rule = Gated(name, rule)
        self.values = [_Values(reading) for reading in gating.read()]
        self._of: Tokens | None = None
        self._scale: torch.Tensor | None = None
        # By slot: [rows, slots] of the tokens that it was asked for, and [nodes, rows, slots] of its gates.
        self._asked: torch.Tensor | None = None
        self._wanted: torch.Tensor | None = None
        self._nodes: torch.Tensor | None = None

    def see(self, component: str, whole: torch.Tensor, tokens: Tokens) -> None:
        """Read what is at a module's input or output, if it is read there and was not in this call."""
        for values in self.values:
            if values.reading.component == component and values.seen is not tokens:
                values.see(whole, tokens)

    @torch.no_grad()
    def at(self, tokens: Tokens, device: torch.device) -> torch.Tensor:
        """What the strength is multiplied by at the tokens of a call, [batch, tokens], float32.

        Raises:
            GateError: a gate has not read yet what decides it.
        """
        if self._of is not tokens or self._scale is None:
            self._scale = self._decided(tokens)
            self._of = tokens
        scale = self._scale
        # Where it acts, for whoever asks for the tokens that were edited.
        tokens.shared((self.rule, tokens.index.device), lambda: scale > 0)
        return tokens.shared((self.name, "gate", device), lambda: scale.to(device))

    def _decided(self, tokens: Tokens) -> torch.Tensor:
        index, device = tokens.index, tokens.index.device
        selected = tokens.mask(self.rule.rule)
        factor = torch.ones(index.shape, device=device)
        if self.gating.schedule is not None:
            factor = self.gating.schedule.factor(index, _prompt(tokens))
        asked = selected & (factor > 0)
        nodes = torch.ones(0, *index.shape, device=device)
        if self.gating.gate is not None:
            openings = self.gating.gate.openings([self._opening(v, tokens, asked) for v in self.values])
            nodes = torch.stack([opening.expand(index.shape) for opening in openings]).to(device)
        opening = nodes[0] if len(nodes) else torch.ones_like(factor)
        scale = torch.where(asked, opening * factor, 0.0)
        if (most := self.gating.most) is not None:
            self._wanted = _written(self._wanted, (scale > 0).unsqueeze(0), tokens.start)
            end = tokens.start + index.shape[1]
            number = self._wanted[0, :, :end].long().cumsum(1)[:, tokens.start :]
            within = number <= most
            asked, scale = asked & within, torch.where(within, scale, 0.0)
        self._asked = _written(self._asked, asked.unsqueeze(0), tokens.start)
        acting = torch.cat([(scale > 0).unsqueeze(0), (nodes > 0) & asked])
        self._nodes = _written(self._nodes, acting, tokens.start)
        return scale

    def _opening(self, values: _Values, tokens: Tokens, asked: torch.Tensor) -> torch.Tensor:
        """How far one reading is open at the tokens of a call, [batch, tokens or 1]."""
        rule, device = values.reading.rule, tokens.index.device
        decided = rule.decide == "once" and tokens.after_prompt and values.seen is not None
        if values.seen is not tokens and not decided:
            raise GateError(
                f"{self.name}: its gate reads {values.reading.component}, which this model computes after "
                "what is edited, or not at all; read an earlier site or layer"
            )
        if rule.decide == "token":
            return rule.opening(values.at(tokens.index)).to(device)
        cursor = (_prompt(tokens) - 1).unsqueeze(1)
        if rule.decide == "once":
            if not tokens.after_prompt:
                self._refuse_early(tokens, asked, cursor)
            return rule.opening(values.at(cursor)).to(device)
        deciding = _turn_of(tokens, cursor)
        opening = rule.opening(values.at(deciding.clamp_min(0))).to(device)
        return torch.where(deciding >= 0, opening, 0.0)

    def _refuse_early(self, tokens: Tokens, asked: torch.Tensor, cursor: torch.Tensor) -> None:
        """Refuse to edit what stands before a cursor that has not been read."""
        read = torch.where(tokens.real, tokens.index, -1).amax(1, keepdim=True)
        if bool((asked & (read < cursor)).any()):
            raise GateError(
                f"{self.name}: its gate is decided at the cursor, and tokens before it are to be edited in a "
                "call that does not reach it; pass the whole prompt in one call (no prefill_chunk_size), or "
                "declare `positions: response`"
            )

    def receipt(self, strength: torch.Tensor, end: int | None) -> GateReceipt:
        """What the gate decided in the run.

        Args:
            strength: in force, scalar or [rows]; rows at strength 0 are not asked.
            end: slots that count; None: all.
        """
        asked, nodes = self._asked, self._nodes
        names = [("opened", False), *((node.place, node.must_open) for node in self.gating.nodes)]
        if asked is None or nodes is None:
            none = tuple(NodeReceipt(name, must, 0, 0) for name, must in names[1:])
            return GateReceipt(0, 0, 0, 0, none)
        on = strength.to(asked.device) != 0
        rows = asked.shape[1]
        on = on.expand(rows) if on.ndim == 0 else on.repeat_interleave(rows // len(on))
        asked, nodes = asked[0, :, :end] & on.unsqueeze(1), nodes[:, :, :end] & on.view(1, -1, 1)
        of_nodes = [
            NodeReceipt(name, must, int(open_.any(1).sum()), int(open_.sum()))
            for (name, must), open_ in zip(names, nodes, strict=True)
        ]
        whole = of_nodes[0]
        return GateReceipt(
            int(asked.any(1).sum()), int(asked.sum()), whole.rows, whole.tokens, tuple(of_nodes[1:])
        )


def _prompt(tokens: Tokens) -> torch.Tensor:
    if tokens.prompt_length is None:
        raise GateError("a gate needs the prompts' lengths, and none were given")
    return tokens.prompt_length.to(tokens.index.device)


def _turn_of(tokens: Tokens, cursor: torch.Tensor) -> torch.Tensor:
    """The position of the turn's cursor that decides each token, Long[batch, tokens]; -1 before the first."""
    index = tokens.index
    latest = torch.where(index >= cursor, cursor, -1)
    if (table := tokens.tables.get(TURNS)) is not None:
        table = table.to(index.device)
        positions = torch.arange(table.shape[1], device=index.device)
        last = torch.where(table, positions, -1).cummax(1).values
        latest = torch.maximum(latest, last.gather(1, index.clamp(0, table.shape[1] - 1)))
    return latest


def _written(kept: torch.Tensor | None, new: torch.Tensor, start: int) -> torch.Tensor:
    """`kept` [n, rows, slots] with `new` [n, rows, tokens] at slot `start` and nothing behind it."""
    end = start + new.shape[2]
    if kept is None or kept.shape[2] < end:
        wider = torch.zeros(*new.shape[:2], max(64, 2 * end), dtype=torch.bool, device=new.device)
        if kept is not None:
            wider[:, :, : kept.shape[2]] = kept
        kept = wider
    kept[:, :, start:] = False
    kept[:, :, start:end] = new
    return kept
