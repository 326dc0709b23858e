"""Log-probabilities of given responses, batched, under the same edits that generation makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from subvene.runner.data.text import TextError, by_length, pad, pad_id_of
from subvene.runner.edits.not_finite import check_finite, rows_named
from subvene.runner.edits.receipt import Receipt, check_together
from subvene.runner.files.progress import track
from subvene.runner.intervened.acting import acting
from subvene.runner.intervened.loaded import LoadedModel


@dataclass(frozen=True)
class Scores:
    """Of given responses.

    Attributes:
        totals: Float64[pairs], Σ log p of each response's tokens, nats.
        likeliest: Bool[pairs], whether each token of a response is the likeliest where it stands; None where
            nobody asked.
        receipts: of each batch.
    """

    totals: torch.Tensor
    likeliest: torch.Tensor | None
    receipts: list[Receipt]


def log_probs(
    m: LoadedModel,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    strengths: Mapping[str, Sequence[float]] | None = None,
    batch_size: int = 16,
    description: str = "scoring",
) -> tuple[torch.Tensor, list[Receipt]]:
    """Σ log p(response token | what precedes it), for each (prompt ids, response ids).

    Args:
        m: the model; its edits act unless it is disabled.
        pairs: token ids; prompts and responses must not be empty.
        strengths: by intervention name, one value per pair.
        batch_size: pairs per forward pass; pairs of like length share one.
        description: what the progress bar says.

    Returns:
        Summed log-probabilities in nats, float64 [pairs], and the receipt of each batch.

    Raises:
        TextError: a prompt or a response holds no token.
        NotSteeredError: an intervention acted on none of the pairs.
        NotFiniteError: a sum is not finite; its `rows` are indices of pairs.
    """
    found = scores(m, pairs, strengths=strengths, batch_size=batch_size, description=description)
    return found.totals, found.receipts


@torch.no_grad()
def scores(
    m: LoadedModel,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    strengths: Mapping[str, Sequence[float]] | None = None,
    batch_size: int = 16,
    description: str = "scoring",
    likeliest: bool = False,
) -> Scores:
    """As `log_probs`, and whether each response is what greedy decoding would give, if `likeliest`."""
    refuse_empty(pairs)
    totals = torch.zeros(len(pairs), dtype=torch.float64)
    is_likeliest = torch.ones(len(pairs), dtype=torch.bool) if likeliest else None
    receipts: list[Receipt] = []
    batches = by_length([len(prompt) + len(response) for prompt, response in pairs], batch_size)
    for chosen in track(batches, description):
        rows = [[*pairs[i][0], *pairs[i][1]] for i in chosen]
        lengths = [len(pairs[i][0]) for i in chosen]
        batch = pad(rows, lengths, pad_id_of(m.tokenizer), "right")
        # Logits only from the first cursor of the batch on: the vocabulary is the largest tensor here.
        first = min(lengths) - 1
        options: dict[str, Any] = {"use_cache": False, "logits_to_keep": batch.input_ids.shape[1] - first}
        if strengths is not None:
            options["strengths"] = {name: [values[i] for i in chosen] for name, values in strengths.items()}
        options["prompt_lengths"] = batch.prompt_lengths
        with rows_named(chosen):
            output = m(batch.input_ids, batch.attention_mask, must_act=False, **options)
        if m.receipt is not None and not m.is_disabled:
            receipts.append(m.receipt)
        logits = output.logits[:, :-1]
        targets = batch.input_ids[:, first + 1 :].to(logits.device)
        chosen_logits = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        token_log_p = chosen_logits.cpu().double() - log_normalizer(logits).cpu()
        slots = torch.arange(first + 1, batch.input_ids.shape[1])
        is_response = slots >= batch.prompt_lengths.unsqueeze(1)
        is_real = batch.attention_mask[:, first + 1 :].bool()
        is_scored = is_response & is_real
        totals[chosen] = (token_log_p * is_scored).sum(1)
        if is_likeliest is not None:
            is_likeliest[chosen] = ((logits.argmax(-1) == targets).cpu() | ~is_scored).all(1)
    check_together(receipts)
    check_finite(totals, "Σ log p", acting(m))
    return Scores(totals, is_likeliest, receipts)


def refuse_empty(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
    """Refuse pairs of which a side holds no token.

    Raises:
        TextError: naming the first.
    """
    for i, (prompt, response) in enumerate(pairs):
        if not prompt or not response:
            raise TextError(f"pair {i}: the {'prompt' if not prompt else 'response'} holds no token to score")


def log_normalizer(logits: torch.Tensor) -> torch.Tensor:
    """Log Σ exp over the vocabulary, float64; a log-probability is a logit minus this.

    The sum is taken in float64: torch's float32 log-softmax over 49,152 tokens is off by some 7e-6 nats a
    token, always to the same side, which adds up over an answer.

    Args:
        logits: [..., vocabulary], of any floating-point type.

    Returns:
        Float64 [...], on the device of `logits`, or on the CPU where that device has no float64.
    """
    if logits.device.type == "mps":
        logits = logits.cpu()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    largest = logits.amax(-1, keepdim=True)
    total = (logits - largest).exp().sum(-1, dtype=torch.float64)
    return total.log() + largest.squeeze(-1).double()
