"""Traits and coherence judged by a local causal language model (Chen et al., 2025).

The model's whole distribution is there, so the score is exact. Whether its tokenizer has whole numbers as
tokens is read from its vocabulary: if all of 0 to 100 are there, the first token decides; otherwise the
digits are followed (`traits_scale`), on top of the keys and values of the prompt, which passes through the
model once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from subvene.runner.data.text import pad, pad_id_of, quoted_ids, reply_ids
from subvene.runner.data.traits import Trait
from subvene.runner.files.progress import track
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.prefix import SharedPrefix, alike, why_not_shared
from subvene.runner.intervened.scoring import log_normalizer
from subvene.runner.judges.base import JudgeError
from subvene.runner.judges.local import LocalModels, last_logits
from subvene.runner.judges.prompts import COHERENCE
from subvene.runner.judges.traits import Exchange, Score, TraitJudge
from subvene.runner.judges.traits_scale import (
    HIGHEST,
    Distribution,
    Top,
    agreement,
    as_completion,
    begins_refusal,
    digit_by_digit,
    number,
    whole_numbers,
)
from subvene.runner.models.forked_cache import branch

if TYPE_CHECKING:
    from subvene.specs.judges import TransformersJudgeSpec

# A number's beginning that is less likely is not followed: all of them together change no score by 1e-4.
_FLOOR = 1e-8
# What one block's forked keys and values may take.
_LARGEST_BYTES = 256 * 2**20


class TransformersTraitJudge(TraitJudge):
    """`truth_model` scores traits, `info_model` coherence; one at a time is in memory, or one for both.

    A model with a chat template is asked in it; any other continues the text with a number.

    Args:
        spec: the models and how many responses go through them at a time.
        folder: unused; a model's local folder is relative to the working directory, as everywhere.
    """

    def __init__(self, spec: TransformersJudgeSpec, folder: Path) -> None:
        self._spec = spec
        self._models = LocalModels(spec)
        self._agreement: dict[str, dict[str, Any] | None] = {}

    def check(self, traits: Sequence[Trait]) -> None:
        """Read the configs and the tokenizers, which are small; the weights are left for later.

        Raises:
            JudgeError: no such model, or its tokenizer cannot spell numbers.
        """
        for _, tokenizer in self._models.tokenizers():
            Numerals(tokenizer)

    def trait(self, trait: Trait, exchanges: Sequence[Exchange]) -> list[Score]:
        """See `TraitJudge.trait`. `refused`: REFUSAL is a likelier beginning than all numbers together."""
        return [
            one.score()
            for one in self._distributions(
                "truth_model", trait.eval_prompt, exchanges, f"judging {trait.name}"
            )
        ]

    def coherence(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """See `TraitJudge.coherence`."""
        found = self._distributions("info_model", COHERENCE, exchanges, "judging coherence")
        return [one.score(refused=False) for one in found]

    @torch.no_grad()
    def _distributions(
        self, field: str, prompt: str, exchanges: Sequence[Exchange], description: str
    ) -> list[Distribution]:
        if not exchanges:
            return []
        model, tokenizer = self._models.load(field)
        chat = getattr(tokenizer, "chat_template", None) is not None
        # A response that comes twice is judged once.
        asked: dict[Exchange, int] = {one: i for i, one in enumerate(dict.fromkeys(exchanges))}
        rows = []
        for one in asked:
            text = prompt.format(question=one.question, answer=one.answer)
            ids = quoted_ids(tokenizer, text if chat else as_completion(text), chat=chat)
            # The number is read right here, outside of any block of reasoning that the template opens.
            rows.append(reply_ids(tokenizer, ids, "")[0])
        numerals = Numerals(tokenizer)
        read = self._whole if numerals.whole else self._split
        found = read(model, tokenizer, numerals, rows, description)
        return [found[asked[one]] for one in exchanges]

    def _whole(
        self, model: Any, tokenizer: Any, numerals: Numerals, rows: list[list[int]], description: str
    ) -> list[Distribution]:
        found: dict[int, Distribution] = {}
        said = last_logits(model, tokenizer, rows, batch_size=self._spec.batch_size, description=description)
        for chosen, logits in said:
            for i, top in zip(chosen, numerals.read(logits), strict=True):
                found[i] = whole_numbers(top)
        return [found[i] for i in range(len(rows))]

    def _split(
        self, model: Any, tokenizer: Any, numerals: Numerals, rows: list[list[int]], description: str
    ) -> list[Distribution]:
        m = IntervenedModel.plain(model, tokenizer)
        shared = _shared(rows)
        if (why := why_not_shared(m, shared, rows)) is not None:
            raise JudgeError(
                f"this judge's tokenizer splits numbers, and its digits cannot be followed one by one: "
                f"{why}; use a model whose tokenizer has the numbers 0 to 100 as tokens"
            )
        prefix = SharedPrefix(m, shared, min(map(len, rows)))
        found: dict[int, Distribution] = {}
        batches = alike([len(ids) - len(shared) for ids in rows], self._spec.batch_size)
        for chosen in track(batches, description):
            batch = _Batch(m, prefix, [rows[i] for i in chosen], numerals)
            for i, one in zip(
                chosen, digit_by_digit(len(chosen), batch.following, floor=_FLOOR, ends=True), strict=True
            ):
                found[i] = one
        return [found[i] for i in range(len(rows))]

    def release(self) -> None:
        """Give back the memory of the model that is loaded."""
        self._models.release()

    def identity(self, traits: Sequence[Trait]) -> dict[str, Any]:
        """What `LocalModels.describe` says of the models; a digest of what they are asked."""
        words = hashlib.sha256((COHERENCE + as_completion("")).encode()).hexdigest()[:16]
        return {"kind": "transformers", **self._models.describe(), "words": words}

    def describe(self, traits: Sequence[Trait]) -> dict[str, Any]:
        """`identity`, and `agreement`, which scores every answer of the contrasts, once."""
        for trait in traits:
            if trait.sha256 not in self._agreement:
                self._agreement[trait.sha256] = agreement(self, trait)
        known = {trait.name: self._agreement[trait.sha256] for trait in traits}
        return self.identity(traits) | {"agreement": known}


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
