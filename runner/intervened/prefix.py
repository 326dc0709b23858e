"""A prefix that many prompts share, encoded once: its keys and values are forked for every row.

Rows are laid out as in any batch padded on the left. The cache covers the first slots of every row, as many
as the prefix has tokens; what the model is given begins there. A row that is shorter than the longest one has
padding in front, so that the end of its prefix lies behind the cache and is passed again: no padding ever
stands inside a row, and every architecture sees distances between tokens as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache

from subvene.interventions import Tokens
from subvene.interventions.positions import needs_length, plain_positions
from subvene.runner.data.text import TextError, pad, pad_id_of
from subvene.runner.edits.forward_call import ForwardCall
from subvene.runner.edits.gates import why_gated
from subvene.runner.edits.not_finite import check_finite
from subvene.runner.edits.receipt import Receipt, check_together
from subvene.runner.edits.strengths import Strength
from subvene.runner.files.progress import track
from subvene.runner.intervened.acting import acting
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.scoring import log_normalizer
from subvene.runner.models.devices import input_device
from subvene.runner.models.forked_cache import Branch, Buffer, Shared, branch, layers_of, why_not_forked

Strengths = Mapping[str, float] | None
Versions = Sequence[Mapping[str, float]]
"""Strengths by intervention name, of each of several edited models that stand side by side."""

# What the largest tensors of one pass may take: a vocabulary per token, and one block's forked cache.
_LARGEST_BYTES = 256 * 2**20
# What a pass costs beside its tokens, in tokens: for fewer, reading the weights takes longer than multiplying
# them. Measured on x86-64 cores (SmolLM2-135M: 2.3 ms a block for 8 tokens, 3.4 for 32, 5.8 for 64); an
# accelerator's is larger.
_PASS = 32
# The share of a prompt that is no padding, at least: the end of the prefix is passed again in its place, and
# what is edited there counts in the receipt again.
FULL = 0.8


@dataclass(frozen=True)
class Continued:
    """Prompts and what may follow each of them.

    Attributes:
        shared: the token ids that every prompt begins with.
        prompts: each prompt's token ids, `shared` included.
        continuations: of each prompt, the token ids of the texts whose likelihood is asked for.
    """

    shared: Sequence[int]
    prompts: Sequence[Sequence[int]]
    continuations: Sequence[Sequence[Sequence[int]]]


def why_not_shared(m: IntervenedModel, shared: Sequence[int], prompts: Sequence[Sequence[int]]) -> str | None:
    """Why the prefix of these prompts cannot be encoded once for all of them; None if it can.

    Keys and values can be forked where every block attends to them. Rules must select the same tokens of the
    prefix in every prompt, and must not count from the end of a response.
    """
    if not shared:
        return "the prompts begin with no common token"
    if (reason := why_not_forked(m.model)) is not None or m.is_disabled:
        return reason
    lengths = torch.tensor(sorted({len(prompt) for prompt in prompts}))
    index = torch.arange(len(shared)).expand(len(lengths), -1)
    tokens = Tokens(index=index, real=torch.ones_like(index, dtype=torch.bool), prompt_length=lengths)
    if (gated := why_gated(m.intervenable)) is not None:
        return gated
    for entry in m.intervenable.entries:
        rule = m.intervenable.interventions[entry.keys[0]].positions
        if needs_length(rule):
            return f"{entry.name}: positions {plain_positions(rule)} count from the end of the response"
        mask = tokens.mask(rule)
        if (mask != mask[:1]).any():
            return f"{entry.name}: positions {plain_positions(rule)} select other tokens in every prompt"
    return None


class SharedPrefix:
    """The keys and values of a prefix, from one pass through the edited (or disabled) model.

    Args:
        m: the model.
        ids: the prefix.
        prompt_length: tokens of a prompt that begins with it.
        strengths: by intervention name, one number in place of the spec's; or several such mappings, for a
            row of keys and values each.

    Attributes:
        length: tokens in the prefix.
        receipt: what the interventions did in this pass; None for a disabled model.
    """

    def __init__(
        self,
        m: IntervenedModel,
        ids: Sequence[int],
        prompt_length: int,
        strengths: Strengths | Versions = None,
    ) -> None:
        self.length = len(ids)
        self.receipt: Receipt | None = None
        device = input_device(m.model)
        cache = DynamicCache()
        rows = 1
        in_force: Mapping[str, Strength] | None
        if strengths is None or isinstance(strengths, Mapping):
            in_force = strengths
        else:
            rows, in_force = len(strengths), by_row(strengths, range(len(strengths)))
        base = {
            "input_ids": torch.tensor([list(ids)] * rows, device=device),
            "attention_mask": torch.ones(rows, len(ids), dtype=torch.long, device=device),
            "past_key_values": cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        if m.is_disabled:
            m.model(**base)
        else:
            # Not through `m`, which refuses a prompt that is longer than the row: here it is, on purpose.
            lengths = torch.tensor([prompt_length] * rows, device=device)
            m.intervenable(base, prompt_lengths=lengths, strengths=in_force, must_act=False)
            self.receipt = m.receipt
        if cache.get_seq_length() != len(ids):
            raise TextError(
                f"{type(m.model).__name__} keeps no cache of keys and values in the form that transformers "
                "has; a shared prefix cannot be used"
            )
        self._layers = [(layer.keys, layer.values) for layer in layers_of(cache)]

    def fork(
        self, padding: Sequence[int], *, room: int | None = None, versions: Sequence[int] | None = None
    ) -> Cache:
        """A cache whose rows continue the prefix, `padding` slots of padding before each.

        Args:
            padding: per row. The cache always covers `length` slots: of a row with padding it holds so many
                fewer tokens of the prefix.
            room: slots to hold ready after the first pass, for a cache that is continued token by token;
                None for one whose only use is one pass and `branch`.
            versions: per row, which of several strengths' keys and values it continues; None: there is one.
        """
        which = None if versions is None else torch.tensor(list(versions))
        slots = None
        if any(padding):
            behind = torch.arange(self.length) - torch.tensor(list(padding)).unsqueeze(1)
            # What stands in the slots of padding is masked and need only be finite.
            slots = behind.clamp_min(0)
        rows = len(padding)
        layers: list[Any] = []
        for keys, values in self._layers:
            segment = Shared(keys, values, slots, rows, which)
            layers.append(
                Branch([segment], self.length) if room is None else Buffer(segment, self.length, room)
            )
        return Cache(layers=layers)


@torch.no_grad()
def continuation_log_probs(
    m: IntervenedModel,
    continued: Continued,
    *,
    batch_size: int = 32,
    strengths: Strengths = None,
    versions: tuple[Versions, Sequence[int]] | None = None,
    description: str = "scoring",
) -> tuple[list[torch.Tensor], list[Receipt]]:
    """Σ log p(token | what precedes it) of every continuation, as `scoring.log_probs` gives it.

    The shared prefix passes through the model once, each prompt's rest once, and of a continuation all but
    its last token, whose output decides nothing.

    Args:
        m: the model; its edits act unless it is disabled. `why_not_shared` must have nothing against it.
        continued: the prompts and their continuations, none of them empty.
        batch_size: prompts at a time; their continuations are batched as memory allows.
        strengths: by intervention name, one number in place of the spec's.
        versions: strengths of several edited models, in place of `strengths`, and which of them each prompt
            is for: rows of one batch that are edited differently.
        description: what the progress bar says.

    Returns:
        Per prompt the summed log-probabilities in nats, float64 [continuations], and the receipts.

    Raises:
        TextError: a prompt has no token after the prefix, or a continuation none at all.
        NotSteeredError: an intervention acted in no pass.
        NotFiniteError: a sum is not finite.
    """
    shared, prompts = list(continued.shared), [list(prompt) for prompt in continued.prompts]
    for i, (prompt, choices) in enumerate(zip(prompts, continued.continuations, strict=True)):
        if len(prompt) <= len(shared) or not all(choices):
            raise TextError(f"prompt {i}: it, or a continuation of it, holds no token to be scored")
    if not prompts:
        return [], []
    totals = [torch.zeros(len(choices), dtype=torch.float64) for choices in continued.continuations]
    prefix = SharedPrefix(m, shared, min(map(len, prompts)), versions[0] if versions else strengths)
    receipts = [] if prefix.receipt is None else [prefix.receipt]
    passed = [len(prompt) - len(shared) for prompt in prompts]
    for chosen in track(alike(passed, batch_size, full=FULL), description):
        own = None if versions is None else (versions[0], [versions[1][i] for i in chosen])
        scorer = _Batch(m, prefix, [prompts[i] for i in chosen], strengths, own)
        asked = [
            (row, j, ids) for row, i in enumerate(chosen) for j, ids in enumerate(continued.continuations[i])
        ]
        for row, j, value in scorer.scores(asked):
            totals[chosen[row]][j] = value
        receipts += scorer.receipts
    check_together(receipts)
    check_finite(torch.stack([total.sum() for total in totals]), "Σ log p of the continuations", acting(m))
    return totals, receipts


def by_row(versions: Versions, rows: Iterable[int]) -> dict[str, list[float]]:
    """Strengths by intervention name, one for each row.

    Args:
        versions: what a row may have.
        rows: which of them each row has.
    """
    which = list(rows)
    return {name: [versions[version][name] for version in which] for name in versions[0]}


def alike(lengths: Sequence[int], batch_size: int, *, full: float = 0.0) -> list[list[int]]:
    """Indices in batches of like length, the longest first, so that the passes over them cost least.

    A pass costs every row's longest length, and what `_PASS` says once. Texts of no token cost nothing and
    stand in batches of their own.

    Args:
        lengths: of the texts, in tokens.
        batch_size: most texts of a batch.
        full: the share of a row that is no padding, at least.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    # Of the first so many: what they cost at least, and where their last batch begins.
    least, begins = [0.0], [0]
    for end in range(1, len(order) + 1):
        costs = [
            (least[begin] + _cost(end - begin, lengths[order[begin]]), begin)
            for begin in range(max(0, end - batch_size), end)
            if lengths[order[end - 1]] >= full * lengths[order[begin]]
        ]
        cost, begin = min(costs)
        least.append(cost)
        begins.append(begin)
    batches, end = list[list[int]](), len(order)
    while end:
        batches.append(order[begins[end] : end])
        end = begins[end]
    return batches[::-1]


def _cost(rows: int, longest: int) -> float:
    """Of a pass over so many rows, in tokens."""
    return _PASS + rows * longest if longest else 0.0


@contextlib.contextmanager
def counting_tokens(model: torch.nn.Module) -> Iterator[list[int]]:
    """Counts into [0] the tokens that pass through a model inside the block, padding included."""
    count = [0]

    def add(called: torch.nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        count[0] += ForwardCall.made(called, args, **kwargs).inputs.numel()

    handle = model.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()


class _Batch:
    """Some prompts on top of a shared prefix, and the scores of what may follow them."""

    def __init__(
        self,
        m: IntervenedModel,
        prefix: SharedPrefix,
        prompts: Sequence[list[int]],
        strengths: Strengths,
        version_of: tuple[Versions, Sequence[int]] | None,
    ) -> None:
        self.m = m
        self.strengths, self.version_of = strengths, version_of
        self.receipts: list[Receipt] = []
        self.lengths = [len(prompt) for prompt in prompts]
        batch = pad(prompts, self.lengths, pad_id_of(m.tokenizer), "left")
        self.mask = batch.attention_mask
        self.slots = self.mask.shape[1]
        padding = [self.slots - length for length in self.lengths]
        self.cache = prefix.fork(padding, versions=None if version_of is None else version_of[1])
        logits = self._run(
            batch.input_ids[:, prefix.length :], self.mask, range(len(prompts)), self.cache, keep=1
        )
        self.first = logits[:, -1].cpu()
        self.normalizer = log_normalizer(self.first)

    def scores(self, choices: Sequence[tuple[int, int, Sequence[int]]]) -> Iterator[tuple[int, int, float]]:
        """(row, which, Σ log p) of each (row, which, token ids)."""
        lengths = [len(ids) for _, _, ids in choices]
        for indices in alike([length - 1 for length in lengths], self._rows_at_once(max(lengths))):
            chosen = [choices[i] for i in indices]
            rows = [row for row, _, _ in chosen]
            totals = self.first[rows, [ids[0] for _, _, ids in chosen]].double() - self.normalizer[rows]
            # Answers of one token need no pass; they are alike, and have a batch of their own.
            if len(chosen[0][2]) > 1:
                totals += self._later_tokens(rows, [ids for _, _, ids in chosen])
            for (row, which, _), total in zip(chosen, totals.tolist(), strict=True):
                yield row, which, total

    def _later_tokens(self, rows: Sequence[int], answers: Sequence[Sequence[int]]) -> torch.Tensor:
        """Σ log p of each answer's tokens from the second on."""
        pad_id = pad_id_of(self.m.tokenizer)
        inputs = pad([ids[:-1] for ids in answers], [0] * len(rows), pad_id, "right")
        targets = pad([ids[1:] for ids in answers], [0] * len(rows), pad_id, "right").input_ids
        mask = torch.cat([self.mask[rows], inputs.attention_mask], 1)
        logits = self._run(inputs.input_ids, mask, rows, branch(self.cache, rows), keep=targets.shape[1])
        totals = torch.zeros(len(rows), dtype=torch.float64)
        # Row by row: the temporaries over the vocabulary are then one row's.
        for i, (row, ids) in enumerate(zip(logits, answers, strict=True)):
            said = row[: len(ids) - 1]
            target = targets[i, : len(ids) - 1].to(said.device)
            chosen = said.gather(-1, target.unsqueeze(-1)).squeeze(-1).cpu().double()
            totals[i] = (chosen - log_normalizer(said).cpu()).sum()
        return totals

    def _run(
        self, ids: torch.Tensor, mask: torch.Tensor, rows: Sequence[int], cache: Cache, *, keep: int
    ) -> torch.Tensor:
        output = self.m(
            ids,
            mask,
            prompt_lengths=[self.lengths[row] for row in rows],
            strengths=self._strengths(rows),
            must_act=False,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        if not self.m.is_disabled and self.m.receipt is not None:
            self.receipts.append(self.m.receipt)
        return output.logits[:, -keep:]

    def _strengths(self, rows: Sequence[int]) -> Mapping[str, float | Sequence[float]] | None:
        if self.version_of is None:
            return self.strengths
        versions, which = self.version_of
        return by_row(versions, (which[row] for row in rows))

    def _rows_at_once(self, tokens: int) -> int:
        vocabulary = self.first.shape[1] * self.first.element_size() * tokens
        # A block's keys and values, and their repetition for every query head of a group.
        cached = 4 * layers_of(self.cache)[0].row_bytes(self.slots + tokens)
        return max(1, _LARGEST_BYTES // max(vocabulary, cached))
