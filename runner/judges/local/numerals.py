"""Numbers in a local model's vocabulary, and the digits of those that its tokenizer splits.

The model's whole distribution is there, so the score is exact. Whether its tokenizer has whole numbers as
tokens is read from its vocabulary: if all of 0 to 100 are there, the first token decides; otherwise the
digits are followed (`scales.numbers`), on top of the keys and values of the prompt, which passes through the
model once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from subvene.runner.data.text import pad, pad_id_of
from subvene.runner.files.progress import track
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.prefix import FULL, SharedPrefix, alike, why_not_shared
from subvene.runner.intervened.scoring import log_normalizer
from subvene.runner.judges.base import JudgeError
from subvene.runner.judges.scales.numbers import Distribution, Top, begins_refusal, digit_by_digit, number
from subvene.runner.judges.scales.zero_to_hundred import HIGHEST
from subvene.runner.models.forked_cache import branch

# A number's beginning that is less likely is not followed: all of them together change no score by 1e-4.
_FLOOR = 1e-8
# What one block's forked keys and values may take.
_LARGEST_BYTES = 256 * 2**20


class Numerals:
    """The tokens of a vocabulary that matter: numbers, what begins with a digit, spaces, REFUSAL.

    Attributes:
        ids: their ids, by token as the vocabulary writes it.
        whole: whether each of 0 to 100 is a token.

    Raises:
        JudgeError: a digit is missing, so that no number can be read.
    """

    def __init__(self, tokenizer: Any) -> None:
        special = set(tokenizer.all_special_tokens)
        self.ids = {
            token: i for token, i in tokenizer.get_vocab().items() if token not in special and _matters(token)
        }
        spelled = {k for token in self.ids if (k := number(token)) is not None}
        if missing := sorted(set(range(10)) - spelled):
            raise JudgeError(
                f"the tokenizer {type(tokenizer).__name__} has no token for the digit {missing[0]}: this "
                "model cannot judge on a scale from 0 to 100"
            )
        self.whole = len(spelled) == HIGHEST + 1
        self._tokens = list(self.ids)
        self._columns = torch.tensor(list(self.ids.values()))

    def read(self, logits: torch.Tensor) -> list[Top]:
        """The probabilities of these tokens; `logits` is [rows, vocabulary]."""
        some = logits[:, self._columns.to(logits.device)].cpu().double()
        p = (some - log_normalizer(logits).cpu().unsqueeze(1)).exp()
        return [list(zip(self._tokens, row, strict=True)) for row in p.tolist()]


def _matters(token: str) -> bool:
    digit = token[:1].isascii() and token[:1].isdigit()
    return digit or not token.strip(" ▁Ġ") or number(token) is not None or begins_refusal(token)


def follow_digits(
    model: Any,
    tokenizer: Any,
    numerals: Numerals,
    rows: list[list[int]],
    *,
    batch_size: int,
    description: str,
) -> list[Distribution]:
    """What the model says after each row of token ids, its numbers digit by digit.

    Raises:
        JudgeError: the model's cache cannot be shared, which the digits need.
    """
    m = IntervenedModel.plain(model, tokenizer)
    shared = _shared(rows)
    if (why := why_not_shared(m, shared, rows)) is not None:
        raise JudgeError(
            f"this judge's tokenizer splits numbers, and its digits cannot be followed one by one: "
            f"{why}; use a model whose tokenizer has the numbers 0 to 100 as tokens"
        )
    prefix = SharedPrefix(m, shared, min(map(len, rows)))
    found: dict[int, Distribution] = {}
    batches = alike([len(ids) - len(shared) for ids in rows], batch_size, full=FULL)
    for chosen in track(batches, description):
        batch = _Batch(m, prefix, [rows[i] for i in chosen], numerals)
        for i, one in zip(
            chosen, digit_by_digit(len(chosen), batch.following, floor=_FLOOR, ends=True), strict=True
        ):
            found[i] = one
    return [found[i] for i in range(len(rows))]


class _Batch:
    """Some prompts on top of a shared prefix, and what the model says after any tokens that follow them."""

    def __init__(
        self, m: IntervenedModel, prefix: SharedPrefix, prompts: Sequence[list[int]], numerals: Numerals
    ) -> None:
        self.m = m
        self.numerals = numerals
        lengths = [len(prompt) for prompt in prompts]
        batch = pad(prompts, lengths, pad_id_of(m.tokenizer), "left")
        self.mask = batch.attention_mask
        slots = self.mask.shape[1]
        self.cache = prefix.fork([slots - length for length in lengths])
        self.first = self._run(batch.input_ids[:, prefix.length :], self.mask, self.cache)
        # Keys and values are put together again for every row of a pass.
        layer: Any = self.cache.layers[0]
        self.rows_at_once = max(1, _LARGEST_BYTES // (4 * layer.row_bytes(slots)))

    def following(self, asked: list[tuple[int, tuple[str, ...]]]) -> list[Top]:
        """What may come after the tokens of each beginning; all of them are equally long."""
        if not asked[0][1]:
            return [self.first[row] for row, _ in asked]
        tops: list[Top] = []
        for start in range(0, len(asked), self.rows_at_once):
            some = asked[start : start + self.rows_at_once]
            rows = [row for row, _ in some]
            ids = torch.tensor([[self.numerals.ids[token] for token in path] for _, path in some])
            mask = torch.cat([self.mask[rows], torch.ones_like(ids)], 1)
            tops += self._run(ids, mask, branch(self.cache, rows))
        return tops

    def _run(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> list[Top]:
        output = self.m(ids, mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return self.numerals.read(output.logits[:, -1])


def _shared(rows: Sequence[list[int]]) -> list[int]:
    """The ids that all rows begin with, so many that each row has one more."""
    shortest = min(rows, key=len)
    for i, token in enumerate(shortest[:-1]):
        if any(row[i] != token for row in rows):
            return shortest[:i]
    return shortest[:-1]
