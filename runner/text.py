"""Text to token ids and back: chat templates, exact prompt boundaries, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from subvene.specs import SubveneError

Messages = Sequence[dict[str, str]]


class TextError(SubveneError, ValueError):
    """A text cannot be made into the token ids that were asked for."""


@dataclass(frozen=True)
class Batch:
    """A padded batch.

    Attributes:
        input_ids: Long[batch, slots].
        attention_mask: Long[batch, slots], 1 on real tokens.
        prompt_lengths: Long[batch], real tokens of each row that are prompt.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    prompt_lengths: torch.Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(*(t.to(device) for t in (self.input_ids, self.attention_mask, self.prompt_lengths)))


def prompt_ids(
    tokenizer: Any, prompt: str | Messages, *, system: str | None = None, chat: bool | None = None
) -> list[int]:
    """Token ids of a prompt, ready for the model to answer.

    Args:
        tokenizer: the model's.
        prompt: a user's turn (or raw text), or a list of messages with `role` and `content`.
        system: a system prompt; chat only.
        chat: put a string into the chat template; None means: if the tokenizer has one.

    Raises:
        TextError: a chat was asked for and the tokenizer has no template, a system prompt was given for a
            text that is to stay raw, or the prompt is empty.
    """
    if system is not None and chat is False:
        raise TextError("a system prompt needs the chat template, which chat=False leaves out")
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if not isinstance(prompt, str) or system is not None or (has_template if chat is None else chat):
        if not has_template:
            raise TextError(
                "this tokenizer has no chat template; pass plain text with chat=False and no system prompt"
            )
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
        chat_template = tokenizer.apply_chat_template
        ids = chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    else:
        ids = tokenizer(prompt)["input_ids"]
    if not ids:
        raise TextError(f"the prompt {prompt!r} is empty: there is no token whose output could be continued")
    return list(ids)


def response_ids(tokenizer: Any, response: str) -> list[int]:
    """Token ids of a response, tokenised on its own, so that the boundary to the prompt is exact."""
    return list(tokenizer(response, add_special_tokens=False)["input_ids"])


def pad(rows: Sequence[Sequence[int]], prompt_lengths: Sequence[int], pad_id: int, side: str) -> Batch:
    """A batch of token ids padded on `side` ("left" for generation, "right" for scoring)."""

    def stack(tensors: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(tensors, True, value, padding_side=side)

    ids = stack([torch.tensor(row) for row in rows], pad_id)
    mask = stack([torch.ones(len(row), dtype=torch.long) for row in rows], 0)
    return Batch(ids, mask, torch.tensor(list(prompt_lengths)))


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of like length, the longest first, so that too little memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def pad_id_of(tokenizer: Any) -> int:
    """The id that fills up rows: the tokenizer's own, or its end-of-sequence (masked either way)."""
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        if (found := getattr(tokenizer, name, None)) is not None:
            return int(found)
    return 0
