"""Decoding token by token on a forked cache, under the edits; the caller says what is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache

from subvene.runner.edits.not_finite import check_finite, rows_named
from subvene.runner.edits.receipt import Receipt, merged
from subvene.runner.edits.strengths import Strength
from subvene.runner.intervened.acting import acting
from subvene.runner.intervened.loaded import LoadedModel
from subvene.runner.models.forked_cache import select

# Rows that have ended are dropped once they are so large a part of a batch: dropping copies the cache.
_DROP = 0.25


@dataclass(frozen=True)
class Decoding:
    """Where decoding begins.

    Attributes:
        cache: with room for what will be generated; of every row the first slots.
        input_ids: Long[rows, slots], what follows in the prompt: padded on the left, at least the cursor.
        attention_mask: Long[rows, all slots of the prompt], 1 on real tokens.
        prompt_lengths: Long[rows], real tokens.
        pad_id: what rows that have ended are given.
    """

    cache: Cache
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    prompt_lengths: torch.Tensor
    pad_id: int


@torch.no_grad()
def decode(
    m: LoadedModel,
    begin: Decoding,
    *,
    strengths: Mapping[str, Strength] | None,
    max_new_tokens: Sequence[int],
    choose: Callable[[torch.Tensor, Sequence[int], int], torch.Tensor],
    has_ended: Callable[[int, list[int]], bool],
) -> tuple[list[list[int]], list[Receipt]]:
    """Generate.

    Args:
        m: the model; its edits act unless it is disabled.
        begin: the prompts.
        strengths: by intervention name, one number, or one per row.
        max_new_tokens: per row.
        choose: (logits [rows here, vocabulary], which rows those are, step) → token ids [rows here].
        has_ended: (row, its tokens so far) → whether it ends here; may take the last tokens away.

    Returns:
        Each row's tokens, and the receipt of all passes together (none for a disabled model).

    Raises:
        NotFiniteError: the logits of a step are not finite; its `rows` are those of `begin`.
    """
    ids, mask, lengths, cache = begin.input_ids, begin.attention_mask, begin.prompt_lengths, begin.cache
    count = len(ids)
    written: list[list[int]] = [[] for _ in range(count)]
    ended = [limit < 1 for limit in max_new_tokens]
    here = list(range(count))  # the rows that are still in the batch
    receipts: list[Receipt] = []
    for step in range(max(max_new_tokens, default=0)):
        with rows_named(here):
            logits = m(
                ids,
                mask,
                prompt_lengths=lengths,
                strengths=_of(strengths, here, count),
                must_act=False,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        if m.is_disabled:
            check_finite(logits[:, -1].amax(-1, keepdim=True), "the logits", acting(m))
        elif m.receipt is not None:
            receipts.append(m.receipt)
        chosen = choose(logits[:, -1], here, step).cpu()
        for row, token in zip(here, chosen.tolist(), strict=True):
            if not ended[row]:
                written[row].append(token)
                ended[row] = has_ended(row, written[row]) or len(written[row]) >= max_new_tokens[row]
        kept = [slot for slot, row in enumerate(here) if not ended[row]]
        if not kept:
            break
        if len(here) - len(kept) >= _DROP * len(here):
            index = torch.tensor(kept)
            select(cache, index)
            mask, lengths, chosen = mask[index], lengths[index], chosen[index]
            here = [here[slot] for slot in kept]
        # A row that has ended and is still here is given padding, which is neither edited nor counted.
        real = torch.tensor([not ended[row] for row in here])
        ids = torch.where(real, chosen, begin.pad_id).unsqueeze(1)
        mask = torch.cat([mask, real.long().unsqueeze(1)], 1)
    return written, merged(receipts, same_rows=True)


def _of(
    strengths: Mapping[str, Strength] | None, rows: Sequence[int], count: int
) -> Mapping[str, Strength] | None:
    """The strengths of some of the rows."""
    if strengths is None or len(rows) == count:
        return strengths
    return {
        name: [value[row] for row in rows] if isinstance(value, list | tuple) else value
        for name, value in strengths.items()
    }
