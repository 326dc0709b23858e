"""Divergence: what interventions cost on ordinary text, always against the original model.

CE is the mean next-token cross-entropy of the edited model, in nats: over the tokens of all texts but the
first of each, which nothing predicts. KL is the mean of KL(original ‖ edited), Σ p·(log p − log q) over the
vocabulary, over every token of every text, as ITI's published code takes it. Both come from one batched pass.

A plain text has no prompt. Its first token counts as one, so that the cursor is token 0 and `response` edits
every token, as `all` does (and as the published code does); `prompt` edits the first token alone. With a
longer prompt (`prompt_tokens`) both numbers are of what follows the cursor: the first token of a sequence is
an attention sink, which a `response` edit of a real prompt never reaches, and whose projection is far from
any other token's, so that bounding or removing it there would cost what it costs nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from pydantic import JsonValue

from subvene.runner.data.limits import refuse_beyond_context
from subvene.runner.data.text import Batch, by_length, pad, pad_id_of, raw_ids
from subvene.runner.data.texts import texts_sha256
from subvene.runner.edits.not_finite import check_finite
from subvene.runner.edits.receipt import Receipt, check_together, merged
from subvene.runner.files.progress import track
from subvene.runner.intervened.acting import acting
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.devices import input_device
from subvene.runner.models.evaluating import evaluating
from subvene.specs import SubveneError


@dataclass(frozen=True)
class Before:
    """What an edited model is given before every text.

    Attributes:
        ids: token ids.
        shared: how many of a text's first tokens (the one that begins any sequence) it has already.
    """

    ids: tuple[int, ...] = ()
    shared: int = 0

    @classmethod
    def of(cls, tokenizer: Any, text: str | None) -> Before:
        """A paragraph before the texts; nothing for None."""
        if text is None:
            return cls()
        ids = tuple(raw_ids(tokenizer, f"{text}\n\n"))
        begins = tokenizer.bos_token_id is not None and ids[:1] == (tokenizer.bos_token_id,)
        return cls(ids, 1 if begins else 0)

    @property
    def offset(self) -> int:
        """Where the first token of a text stands, or what predicts the second one in its place."""
        return len(self.ids) - self.shared


class Reference:
    """The original model on given texts, computed once for every condition that is compared with it.

    Kept are its final hidden states, a hundredth of what its logits would take; the LM head makes the logits
    from them again, batch by batch. So the original model has to stay in memory.

    Args:
        m: the original model; its interventions, if it has any, are off.
        texts: plain texts; those that end with their prompt say nothing and are left out.
        max_tokens: the first so many tokens of each are read.
        prompt_tokens: so many tokens of each text count as its prompt.
        batch_size: texts per forward pass, here and in `divergence`.

    Attributes:
        ids: token ids of each text that is measured.
        lengths: how many tokens of each count.
        left_out: how many texts were too short.
        cut: how many texts have more than `max_tokens` tokens, so that their rest is not read.
        first: the cursor, the first token whose output counts.
        tokens: tokens of all texts from there on.
        ce: the original's cross-entropy, mean over predicted tokens.
        ce_by_text: the same by text.
        data_sha256: of the texts given.

    Raises:
        SubveneError: no text has two tokens, or the model's logits cannot be made from its hidden states.
    """

    def __init__(
        self,
        m: IntervenedModel,
        texts: Sequence[str],
        *,
        max_tokens: int = 128,
        prompt_tokens: int = 1,
        batch_size: int = 8,
    ) -> None:
        whole = [raw_ids(m.tokenizer, text) for text in texts]
        tokenized = [ids[:max_tokens] for ids in whole]
        self.first, self.max_tokens = prompt_tokens - 1, max_tokens
        self.ids = [ids for ids in tokenized if len(ids) > prompt_tokens]
        if not self.ids:
            raise SubveneError(
                f"divergence: none of {len(texts)} texts has {prompt_tokens + 1} tokens within max_tokens: "
                f"{max_tokens}, and the first {prompt_tokens} of a text are its prompt"
            )
        self.left_out = len(tokenized) - len(self.ids)
        self.cut = sum(len(ids) > max_tokens for ids in whole)
        refuse_beyond_context(m.model, [len(ids) for ids in self.ids], "divergence: text")
        self.lengths = [len(ids) - self.first for ids in self.ids]
        self.tokens = sum(self.lengths)
        self.data_sha256 = texts_sha256(texts)
        self._model: Any = m.model
        self._pad_id = pad_id_of(m.tokenizer)
        self._hidden: list[torch.Tensor] = [torch.empty(0)] * len(self.ids)
        self._batches = by_length([len(ids) for ids in self.ids], batch_size)
        losses = torch.zeros(len(self.ids), dtype=torch.float64)
        for chosen in track(self._batches, "original model"):
            logits = self._collect(m, chosen)
            if chosen is self._batches[0]:
                self._check(chosen, logits)
            for i, row in zip(chosen, logits, strict=True):
                losses[i] = _cross_entropy(_log_probs(row[self.first :]), self.ids[i][self.first :])
        check_finite(losses, "divergence: CE of the original model")
        self.ce_by_text = [float(loss) / (n - 1) for loss, n in zip(losses, self.lengths, strict=True)]
        self.ce = float(losses.sum()) / (self.tokens - len(self.ids))

    @property
    def batches(self) -> list[list[int]]:
        """Indices of texts of like length, by forward pass."""
        return self._batches

    def batch(self, chosen: Sequence[int], before: Before | None = None) -> Batch:
        """Some of the texts, padded on the right, behind what stands before all of them."""
        before = before or Before()
        rows = [[*before.ids, *self.ids[i][before.shared :]] for i in chosen]
        return pad(rows, [before.offset + self.first + 1] * len(rows), self._pad_id, "right")

    @torch.no_grad()
    def logits(self, chosen: Sequence[int]) -> list[torch.Tensor]:
        """The original's logits of some of the texts, [tokens, vocabulary] each."""
        model, lengths = self._model, [len(self.ids[i]) for i in chosen]
        hidden = torch.cat([self._hidden[i] for i in chosen]).unsqueeze(0)

        def put_in(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (hidden.to(args[0].device, args[0].dtype), *args[1:])

        # The model's own forward on a single token, whose hidden state gives way to all those kept: what some
        # models do to the logits after the LM head (capping, scaling) is so done as they do it.
        handle = model.get_output_embeddings().register_forward_pre_hook(put_in)
        try:
            one = torch.tensor([[self.ids[chosen[0]][0]]], device=input_device(model))
            with evaluating(model):
                found = model(input_ids=one, use_cache=False).logits
        finally:
            handle.remove()
        return list(found[0].split(lengths))

    @torch.no_grad()
    def _collect(self, m: IntervenedModel, chosen: Sequence[int]) -> list[torch.Tensor]:
        """Run the original on some texts: keep its hidden states, give back its logits."""
        batch = self.batch(chosen)
        seen: list[torch.Tensor] = []
        head = self._model.get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
        try:
            with m.disabled(), evaluating(self._model):
                logits = m(batch.input_ids, batch.attention_mask, use_cache=False).logits
        finally:
            handle.remove()
        lengths = [len(self.ids[i]) for i in chosen]
        for row, (i, length) in enumerate(zip(chosen, lengths, strict=True)):
            self._hidden[i] = seen[0][row, :length].cpu().clone()
        return [row[:length] for row, length in zip(logits, lengths, strict=True)]

    def _check(self, chosen: Sequence[int], logits: Sequence[torch.Tensor]) -> None:
        for there, again in zip(logits, self.logits(chosen), strict=True):
            slack = 64 * torch.finfo(there.dtype).eps * float(there.abs().max())
            if again.shape != there.shape or float((again - there).abs().max()) > slack:
                raise SubveneError(
                    f"divergence: the logits of {type(self._model).__name__} are not a function of the input "
                    "of its output embeddings, so they cannot be kept for comparison"
                )


class Divergence(TypedDict):
    """What `divergence` gives, JSON values.

    `ce` and `kl` over all tokens; `original_ce` of the untouched model; by text, in the order of those that
    are not `left_out`; `cut`: texts longer than `max_tokens`.
    """

    ce: float
    kl: float
    original_ce: float
    ce_by_text: list[float]
    kl_by_text: list[float]
    tokens_by_text: list[int]
    texts: int
    tokens: int
    left_out: int
    max_tokens: int
    cut: int
    data_sha256: str
    receipts: list[JsonValue]


@torch.no_grad()
def divergence(m: IntervenedModel, reference: Reference, *, before: str | None = None) -> Divergence:
    """CE of an edited model, and KL(original ‖ edited), on the texts of `reference`.

    Args:
        m: the edited model (or a baked one, `IntervenedModel.plain`); it has the original's vocabulary.
        reference: the original model on the texts, with nothing before them.
        before: a paragraph that the edited model is given before every text, such as a system prompt; both
            numbers are of the text alone. None: nothing.

    Returns:
        `ce` and `kl` in nats per token; `original_ce`; `ce_by_text` and `kl_by_text`, means over each text's
        tokens, and `tokens_by_text`; `texts`, `tokens`, `left_out`, `max_tokens`, `cut` (how many texts have
        more), `data_sha256`; `receipts`, one per intervention.

    Raises:
        NotSteeredError: an intervention acted on none of the texts.
        NotFiniteError: CE or KL of a text is not a number, such as where it rules out what the original says.
        SubveneError: the two models have different vocabularies.
    """
    losses = torch.zeros(len(reference.ids), dtype=torch.float64)
    divergences = torch.zeros_like(losses)
    receipts: list[Receipt] = []
    first = Before.of(m.tokenizer, before)
    lengths = [first.offset + len(ids) for ids in reference.ids]
    refuse_beyond_context(m.model, lengths, "divergence: text behind the system prompt")
    for chosen in track(reference.batches, "divergence"):
        batch = reference.batch(chosen, first)
        with evaluating(m.model):
            output = m(
                batch.input_ids,
                batch.attention_mask,
                prompt_lengths=batch.prompt_lengths,
                must_act=False,
                use_cache=False,
            )
        if m.receipt is not None and not m.is_disabled:
            receipts.append(m.receipt)
        for i, edited, original in zip(chosen, output.logits, reference.logits(chosen), strict=True):
            ids = reference.ids[i]
            edited = edited[first.offset : first.offset + len(ids)]
            if edited.shape != original.shape:
                raise SubveneError(
                    f"divergence: the edited model has {edited.shape[-1]} tokens in its vocabulary and the "
                    f"original {original.shape[-1]}; they cannot be compared"
                )
            log_q = _log_probs(edited[reference.first :])
            losses[i] = _cross_entropy(log_q, ids[reference.first :])
            divergences[i] = _kl(_log_probs(original[reference.first :]).to(log_q.device), log_q)
    check_finite(torch.stack([losses, divergences], 1), "divergence: CE and KL", acting(m))
    check_together(receipts)
    lengths = reference.lengths
    return {
        "ce": float(losses.sum()) / (reference.tokens - len(lengths)),
        "kl": float(divergences.sum()) / reference.tokens,
        "original_ce": reference.ce,
        "ce_by_text": [float(loss) / (n - 1) for loss, n in zip(losses, lengths, strict=True)],
        "kl_by_text": [float(kl) / n for kl, n in zip(divergences, lengths, strict=True)],
        "tokens_by_text": list(lengths),
        "texts": len(lengths),
        "tokens": reference.tokens,
        "left_out": reference.left_out,
        "max_tokens": reference.max_tokens,
        "cut": reference.cut,
        "data_sha256": reference.data_sha256,
        "receipts": [one for receipt in merged(receipts, same_rows=False) for one in receipt.to_dict()],
    }


def _cross_entropy(log_p: torch.Tensor, ids: Sequence[int]) -> float:
    """Σ −log p(token | what precedes it), of log-probabilities [tokens, vocabulary]."""
    targets = torch.tensor(ids[1:], device=log_p.device)
    return -float(log_p[:-1].gather(-1, targets.unsqueeze(-1)).sum())


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> float:
    """Σ over tokens of KL(p ‖ q), of log-probabilities [tokens, vocabulary]."""
    p = log_p.exp()
    # A token that the original rules out counts nothing, whatever the edited model says of it.
    return float(torch.where(p > 0, p * (log_p - log_q), 0.0).sum())


def _log_probs(logits: torch.Tensor) -> torch.Tensor:
    # In float64: the KL of two nearly equal distributions is a small difference of large sums.
    if logits.device.type == "mps":
        logits = logits.cpu()  # has no float64
    return logits.double().log_softmax(-1)
