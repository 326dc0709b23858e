"""Rollouts: many responses in few batches, each row with strengths, a temperature and a seed of its own.

A row's text does not depend on the batch that it is in: its tokens are drawn by inverting the cumulative
distribution at uniform numbers from the row's own generator, and the same code draws them whatever the
strengths are. (Batches of other shapes round logits differently, by some 1e-6; a draw that falls so close to
a border between two tokens can differ. That is so of any batched generation.)

What the prompt's tokens are without an edit is computed once for all rows that share a prompt, whatever their
coefficients are: with `positions: response` only the cursor and what follows it differ.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import DynamicCache

from subvene.interventions import Tokens
from subvene.interventions.positions import needs_length, plain_positions
from subvene.runner.data.limits import refuse_beyond_context
from subvene.runner.data.reasoning import answer_of
from subvene.runner.data.text import pad, pad_id_of
from subvene.runner.edits.gates import why_gated
from subvene.runner.edits.not_finite import check_finite, rows_named
from subvene.runner.edits.positions import PositionError
from subvene.runner.edits.receipt import Receipt, check_together
from subvene.runner.files.progress import track
from subvene.runner.intervened.acting import acting
from subvene.runner.intervened.decoding import Decoding, decode
from subvene.runner.intervened.drawing import draw
from subvene.runner.intervened.loaded import LoadedModel
from subvene.runner.intervened.measured import measured_options
from subvene.runner.intervened.own_sampling import OwnSampling
from subvene.runner.models.devices import input_device
from subvene.runner.models.forked_cache import continued, empty, why_not_forked
from subvene.runner.models.generation import answer_ends
from subvene.specs import Positions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One response to be generated.

    Attributes:
        prompt: token ids, up to the cursor.
        seed: of what is drawn.
        strengths: by intervention name; those not named are 0, so that the row is not edited by them. None:
            what the spec says.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: only the likeliest tokens that together hold this share of the probability are drawn.
        max_new_tokens: longest response.
        own: the checkpoint's own settings, in place of `temperature` and `top_p`.
        stop: a text that ends the response; the tokens that spell it are kept.
    """

    prompt: tuple[int, ...]
    seed: int = 0
    strengths: Mapping[str, float] | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    own: OwnSampling | None = None
    stop: str | None = None

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn, rather than the likeliest taken."""
        return self.temperature > 0 if self.own is None else self.own.draws


@dataclass(frozen=True)
class Rollout:
    """A response.

    Attributes:
        tokens: as they were generated, without the token that ended it.
        ended: whether the model ended it, or the row's `stop` came; otherwise it was cut off.
        start: the first of `tokens` that belongs to the answer: what comes before is a block of reasoning
            (`runner.reasoning`).
        text: the answer, without the spaces around it; empty where the reasoning did not end.
    """

    tokens: tuple[int, ...]
    ended: bool
    start: int
    text: str


def row_seed(*identity: Any) -> int:
    """A seed for whatever JSON values tell a row from others; the same everywhere and always."""
    text = json.dumps(identity, ensure_ascii=False, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


@torch.no_grad()
def rollouts(
    m: LoadedModel, rows: Sequence[Row], *, batch_size: int = 64, description: str = "responses"
) -> tuple[list[Rollout], list[Receipt]]:
    """Generate every row's response.

    Args:
        m: the model; its edits act with each row's strengths, unless it is disabled.
        rows: what is generated.
        batch_size: rows at a time.
        description: what the progress bar says.

    Returns:
        The responses in the order of `rows`, and the receipts of the passes (none for a disabled model).

    Raises:
        PositionError: a rule counts from the end of the response, which is not known yet.
        TooLongError: a prompt and its response would be longer than the model's context.
        NotSteeredError: an intervention that has a strength in some row acted in none.
        NotFiniteError: activations or logits are not finite; `rows` says in which rows of the first batch
            where they are not.
    """
    for name, rule in _rules(m).items():
        if needs_length(rule):
            raise PositionError(
                f"{name}: positions {plain_positions(rule)} count from the end of the response, which "
                "generation does not know"
            )
    for row in rows:
        refuse_beyond_context(m.model, [len(row.prompt)], "a prompt, row", new=row.max_new_tokens)
    reason = why_not_forked(m.model) or (None if m.is_disabled else why_gated(m.intervenable))
    if reason is not None:
        log.warning("every row's prompt is passed whole: %s", reason)
    # Rows with the same prompt stay together: its tokens are passed once.
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].prompt), rows[i].prompt))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    found: list[Rollout | None] = [None] * len(rows)
    receipts: list[Receipt] = []
    for chosen in track(batches, description):
        batch = Batch(m, [rows[i] for i in chosen])
        with rows_named(chosen):
            written, ended, told = batch.forked() if reason is None else batch.whole()
        receipts += told
        for i, tokens, has_ended in zip(chosen, written, ended, strict=True):
            start, text = answer_of(m.tokenizer, rows[i].prompt, tokens)
            found[i] = Rollout(tuple(tokens), has_ended, start, text)
    check_together(receipts)
    return [rollout for rollout in found if rollout is not None], receipts


def _rules(m: LoadedModel) -> dict[str, Positions]:
    """Intervention name → its position rule; none for a disabled model."""
    if m.is_disabled:
        return {}
    return {
        entry.name: m.intervenable.interventions[entry.keys[0]].positions for entry in m.intervenable.entries
    }


class Batch:
    """Some rows that are generated together.

    Args:
        m: the model.
        rows: what is generated.

    Attributes:
        ended: of each row whether the model ended it.
    """

    def __init__(self, m: LoadedModel, rows: Sequence[Row]) -> None:
        self.m = m
        self.rows = rows
        self.pad_id = pad_id_of(m.tokenizer)
        self.ends = answer_ends(m.model, m.tokenizer)
        self.lengths = torch.tensor([len(row.prompt) for row in rows])
        self.batch = pad([row.prompt for row in rows], self.lengths.tolist(), self.pad_id, "left")
        self.limits = [row.max_new_tokens for row in rows]
        self.uniform = [
            np.random.Generator(np.random.Philox(row.seed)).random(row.max_new_tokens) for row in rows
        ]
        self.strengths = self._strengths()
        self.ended = [False] * len(rows)
        # Of rows with settings of the checkpoint: tokens so far, which these may look at.
        self.ids = {i: list(row.prompt) for i, row in enumerate(rows) if row.own is not None}

    def forked(self) -> tuple[list[list[int]], list[bool], list[Receipt]]:
        """Tokens, whether each row ended, and receipts; prompts that are alike are passed once."""
        ids, mask = self.batch.input_ids, self.batch.attention_mask
        room = max(self.limits)
        receipts: list[Receipt] = []
        first, group = self._alike()
        cache = DynamicCache()
        if ids.shape[1] > 1:
            receipts += self._prefill(cache, first)
            forks = continued(cache, group, room=room)
        else:
            forks = empty(self.m.model, room=room)
        begin = Decoding(forks, ids[:, -1:], mask, self.lengths, self.pad_id)
        written, told = decode(
            self.m,
            begin,
            strengths=self.strengths,
            max_new_tokens=self.limits,
            choose=self._choose,
            has_ended=self.has_ended,
        )
        return written, self.ended, [*receipts, *told]

    def whole(self) -> tuple[list[list[int]], list[bool], list[Receipt]]:
        """The same for a model whose cache cannot be forked, by its own `generate`."""
        sequences = self.m.generate_ids(
            self.batch.input_ids,
            self.batch.attention_mask,
            strengths=self.strengths,
            max_new_tokens=max(self.limits),
            eos_token_id=sorted(self.ends) or None,
            pad_token_id=self.pad_id,
            logits_processor=LogitsProcessorList([_Drawn(self._choose, list(range(len(self.rows))))]),
            **measured_options(self.m.model),
        )
        written: list[list[int]] = []
        for row, tokens in enumerate(sequences[:, self.batch.input_ids.shape[1] :].tolist()):
            kept: list[int] = []
            for token in tokens[: self.limits[row]]:
                kept.append(token)
                if self.has_ended(row, kept):
                    break
            written.append(kept)
        receipt = None if self.m.is_disabled else self.m.receipt
        return written, self.ended, [] if receipt is None else [receipt]

    def _strengths(self) -> dict[str, list[float]] | None:
        if self.m.is_disabled or all(row.strengths is None for row in self.rows):
            return None
        by_name: dict[str, list[float]] = {}
        for entry in self.m.intervenable.entries:
            edit = self.m.intervenable.interventions[entry.keys[0]]
            own = edit.strength
            if own.ndim and any(row.strengths is None for row in self.rows):
                raise ValueError(
                    f"{entry.name}: its spec has a strength per row; give each row its strengths"
                )
            by_name[entry.name] = [
                float(own) if row.strengths is None else float(row.strengths.get(entry.name, 0.0))
                for row in self.rows
            ]
        unknown = {name for row in self.rows for name in row.strengths or {}} - by_name.keys()
        if unknown:
            raise ValueError(
                f"strengths: no intervention is called {min(unknown)!r}; there are: {list(by_name)}"
            )
        return by_name

    def _alike(self) -> tuple[list[int], list[int]]:
        """Rows whose prompts are passed, and for every row which of these it continues."""
        edits_prompt = [self._edits_prompt(i) for i in range(len(self.rows))]
        seen: dict[Any, int] = {}
        first: list[int] = []
        group: list[int] = []
        for i, row in enumerate(self.rows):
            key = (row.prompt, i if edits_prompt[i] else None)
            if key not in seen:
                seen[key] = len(first)
                first.append(i)
            group.append(seen[key])
        return first, group

    def _edits_prompt(self, i: int) -> bool:
        """Whether an edit reaches a token of this row before the cursor."""
        length = len(self.rows[i].prompt)
        index = torch.arange(length - 1).unsqueeze(0)
        tokens = Tokens(
            index=index,
            real=torch.ones_like(index, dtype=torch.bool),
            prompt_length=torch.tensor([length]),
        )
        for name, rule in _rules(self.m).items():
            is_on = self.strengths is None or self.strengths[name][i] != 0
            if is_on and bool(tokens.mask(rule).any()):
                return True
        return False

    def _prefill(self, cache: DynamicCache, rows: Sequence[int]) -> list[Receipt]:
        """Pass the prompts of some rows, all but their last token, into the cache."""
        index = torch.tensor(list(rows))
        ids, mask = self.batch.input_ids[index, :-1], self.batch.attention_mask[index, :-1]
        device = input_device(self.m.model)
        base: dict[str, Any] = {
            "input_ids": ids.to(device),
            "attention_mask": mask.to(device),
            "past_key_values": cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        position_ids = self.m.position_ids(base["attention_mask"], ids.shape[1])
        if position_ids is not None:
            base["position_ids"] = position_ids
        if self.m.is_disabled:
            self.m.model(**base)
            return []
        strengths = None
        if self.strengths is not None:
            strengths = {name: [values[i] for i in rows] for name, values in self.strengths.items()}
        # Not through `m`, which refuses a prompt that is longer than the row: here it is, on purpose.
        lengths = self.lengths[index].to(device)
        with rows_named(rows):
            self.m.intervenable(base, prompt_lengths=lengths, strengths=strengths, must_act=False)
        return [] if self.m.receipt is None else [self.m.receipt]

    def _choose(self, logits: torch.Tensor, rows: Sequence[int], step: int) -> torch.Tensor:
        if self.m.is_disabled:  # an edited run is looked at as a whole
            check_finite(logits.amax(-1, keepdim=True), "the logits", acting(self.m))
        # As given where no row has settings of the checkpoint: a copy would round nothing, and cost.
        scores = self._scores(logits, rows) if self.ids else logits
        drawn = [slot for slot, row in enumerate(rows) if self.rows[row].draws]
        drawn = [slot for slot in drawn if step < self.limits[rows[slot]]]
        chosen = (
            scores.argmax(-1) if len(drawn) < len(rows) else scores.new_empty(len(rows), dtype=torch.long)
        )
        if drawn:
            of = [self.rows[rows[slot]] for slot in drawn]
            u = torch.tensor([self.uniform[rows[slot]][step] for slot in drawn], dtype=torch.float64)
            chosen[drawn] = draw(
                scores[drawn],
                u,
                temperatures=_of_given([row.temperature for row in of], of),
                top_p=_of_given([row.top_p for row in of], of),
            )
        for slot, row in enumerate(rows):
            if row in self.ids:
                self.ids[row].append(int(chosen[slot]))
        return chosen

    def _scores(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """The logits, those of rows with settings of the checkpoint as these leave them."""
        scores = logits.float().clone()
        for slot, row in enumerate(rows):
            if (own := self.rows[row].own) is not None:
                scores[slot] = own.scores(self.ids[row], logits[slot])
        return scores

    def has_ended(self, row: int, tokens: list[int]) -> bool:
        """Whether a row ends with the token that it has just been given, which is then taken away."""
        if tokens[-1] in self.ends:
            tokens.pop()
            self.ended[row] = True
            return True
        if (stop := self.rows[row].stop) is not None and stop in self.m.tokenizer.decode(tokens):
            self.ended[row] = True
            return True
        return False


def _of_given(values: Sequence[float], rows: Sequence[Row]) -> torch.Tensor:
    """float64 [rows]; 1, which changes nothing, where a row has the checkpoint's own settings."""
    of = [value if row.own is None else 1.0 for value, row in zip(values, rows, strict=True)]
    return torch.tensor(of, dtype=torch.float64)


class _Drawn(LogitsProcessor):
    """Leaves `generate` no choice but the token that was drawn."""

    def __init__(self, choose: Any, rows: list[int]) -> None:
        self.choose, self.rows, self.step = choose, rows, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = self.choose(scores, self.rows, self.step)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen.unsqueeze(1), 0.0)
