"""Text to token ids and back: chat templates, exact prompt boundaries, padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import JsonValue

from subvene.runner.data.chat_template import Messages, TextError, has_template, rendered_ids, writable
from subvene.runner.data.reasoning import opened, without_markers, without_reasoning
from subvene.runner.data.rendered import conversation, frame_of, plain, reply_text, special_in
from subvene.runner.data.said import texts_of
from subvene.runner.models.chat_settings import chat_of

__all__ = [
    "Batch",
    "Messages",
    "TextError",
    "by_length",
    "messages_of",
    "pad",
    "pad_id_of",
    "plain",
    "prompt_ids",
    "quoted_ids",
    "quoted_response_ids",
    "raw_ids",
    "reply_ids",
    "response_ids",
]


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
    tokenizer: Any,
    prompt: str | Messages,
    *,
    system: str | None = None,
    chat: bool | None = None,
    chat_template_kwargs: Mapping[str, JsonValue] | None = None,
) -> list[int]:
    """Token ids of a prompt, ready for the model to answer.

    A string that the chat template has already been put around (a prompt of a finished run) is read as the
    conversation it is.

    Args:
        tokenizer: the model's.
        prompt: a user's turn (or raw text), or a list of messages with `role` and `content`.
        system: a system prompt; chat only.
        chat: put a string into the chat template; None means: if the tokenizer has one.
        chat_template_kwargs: variables of the template, beside those that the model's spec declares.

    Raises:
        TextError: a chat was asked for and the tokenizer has no template, the template refuses the
            conversation, a system prompt was given for a text that is to stay raw, a text holds special
            tokens of the tokenizer and is no conversation, or the prompt is empty.
    """
    if system is not None and chat is False:
        raise TextError("a system prompt needs the chat template, which chat=False leaves out")
    wanted = has_template(tokenizer) if chat is None else chat
    if not isinstance(prompt, str) or system is not None or wanted:
        if not has_template(tokenizer):
            raise TextError(
                "this tokenizer has no chat template; pass plain text with chat=False and no system prompt"
            )
        settings = chat_of(tokenizer).with_variables(chat_template_kwargs)
        ids = rendered_ids(tokenizer, messages_of(tokenizer, prompt, system), settings=settings)
    else:
        ids = raw_ids(tokenizer, prompt)
    if not ids:
        raise TextError(f"the prompt {prompt!r} is empty: there is no token whose output could be continued")
    return list(ids)


def turn_cursors(
    tokenizer: Any,
    prompt: str | Messages,
    ids: Sequence[int],
    *,
    system: str | None = None,
    chat: bool | None = None,
    chat_template_kwargs: Mapping[str, JsonValue] | None = None,
) -> list[int]:
    """The positions of the tokens before the assistant's turns of a prompt, the one to come among them.

    Args:
        tokenizer: the model's.
        prompt: as for `prompt_ids`.
        ids: what that gave for it.
        system: as for `prompt_ids`.
        chat: likewise.
        chat_template_kwargs: likewise.

    Raises:
        TextError: the template renders what comes before a turn otherwise once the turn is there.
    """
    cursors = []
    turns = [] if isinstance(prompt, str) else list(prompt)
    for i in (i for i, turn in enumerate(turns) if turn.get("role") == "assistant"):
        before = prompt_ids(
            tokenizer, turns[:i], system=system, chat=chat, chat_template_kwargs=chat_template_kwargs
        )
        if list(ids[: len(before)]) != before:
            raise TextError(
                f"message {i} (assistant): where this turn begins cannot be told, since the template renders "
                "what precedes it otherwise when it is there; give the token ids to generate_ids, with turns="
            )
        cursors.append(len(before) - 1)
    return [*cursors, len(ids) - 1]


def messages_of(
    tokenizer: Any, prompt: str | Messages, system: str | None = None
) -> list[dict[str, JsonValue]]:
    """A prompt as messages that hold nobody's words but their own.

    Raises:
        TextError: a text holds special tokens, there are two system prompts, or the conversation has been
            answered.
    """
    if isinstance(prompt, str):
        parsed = conversation(tokenizer, prompt)
        if parsed is not None and parsed[-1]["role"] == "assistant":
            raise TextError(
                f"the prompt {prompt[:60]!r} is a conversation that ends with an answer, as the chat "
                "template makes it; give what comes before the answer"
            )
        turns = parsed or [{"role": "user", "content": prompt}]
        messages = [dict[str, JsonValue](turn) for turn in turns]
    else:
        messages = [dict(message) for message in prompt]
        if messages and messages[-1].get("role") == "assistant":
            raise TextError(
                "the conversation ends with an assistant's turn, and the template would open another behind "
                "it: give what comes before the answer; to go on with an answer, give its token ids to "
                "generate_ids, with prompt_lengths"
            )
        for i, message in enumerate(messages):
            for text in texts_of(message):
                plain(tokenizer, without_markers(text), f"message {i} ({message.get('role')})")
    if system is None:
        return messages
    if messages and messages[0].get("role") == "system":
        raise TextError(
            f"two system prompts: {system[:60]!r}, and the conversation's own "
            f"{str(messages[0]['content'])[:60]!r}; give one"
        )
    return [{"role": "system", "content": plain(tokenizer, system, "the system prompt")}, *messages]


def raw_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text as it stands: what the tokenizer puts before it is not put there twice."""
    ids = list(tokenizer(writable(text, "the text"))["input_ids"])
    token = special_in(tokenizer, text)
    if token is None or not text.startswith(token):
        return ids
    own = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    before = next((n for n in range(len(ids) - len(own) + 1) if ids[n : n + len(own)] == own), 0)
    return ids[before:] if ids[:before] == own[:before] else ids


def response_ids(tokenizer: Any, response: str) -> list[int]:
    """Token ids of a response, tokenised on its own, so that the boundary to the prompt is exact.

    Raises:
        TextError: it holds special tokens of the tokenizer, other than the one that ended it.
    """
    writable(response, "a reply")
    return list(tokenizer(reply_text(tokenizer, response), add_special_tokens=False)["input_ids"])


def reply_ids(tokenizer: Any, prompt: Sequence[int], reply: str) -> tuple[list[int], list[int]]:
    """A reply to be read after a prompt: the token ids before it, and its own.

    Of a reply with a block of reasoning the answer alone is read, or, with `reasoning: keep`, all of it.
    Where the prompt ends inside an opened block, a reply without one stands behind an empty block.

    Raises:
        TextError: the reply holds special tokens, or is all reasoning.
    """
    keep, block = chat_of(tokenizer).reasoning == "keep", opened(tokenizer, prompt)
    answer = without_reasoning(reply)
    if reply.strip() and not answer.strip():
        raise TextError(
            f"the reply {reply[:60]!r} is a block of reasoning without an answer after it; give whole replies"
            + ("" if keep else ", or set `reasoning: keep` under `model:`")
        )
    if keep and answer != reply:
        whole = reply.lstrip().removeprefix(block.open).lstrip("\n") if block is not None else reply
        return list(prompt), response_ids(tokenizer, whole)
    before = list(prompt)
    if block is not None:
        before += tokenizer(block.unused, add_special_tokens=False)["input_ids"]
    return before, response_ids(tokenizer, answer)


def quoted_ids(tokenizer: Any, text: str, *, chat: bool) -> list[int]:
    """A prompt that quotes what others wrote: special tokens in it are the characters that they consist of.

    Judges read what models wrote; what looks like the end of a turn there ends no turn of theirs.
    """
    if special_in(tokenizer, text) is None:
        return prompt_ids(tokenizer, text, chat=chat)
    writable(text, "the prompt")
    frame = frame_of(tokenizer) if chat else None
    if frame is None:
        if chat:
            raise TextError(
                "the chat template changes plain text, so a text with special tokens cannot be quoted"
            )
        return list(tokenizer(text, split_special_tokens=True)["input_ids"])
    begin, end = (
        tokenizer(part, add_special_tokens=False)["input_ids"] for part in (frame.begin, frame.cursor)
    )
    return [*begin, *quoted_response_ids(tokenizer, text), *end]


def quoted_response_ids(tokenizer: Any, text: str) -> list[int]:
    """A response that a model wrote; special tokens in it are the characters that they consist of."""
    if special_in(tokenizer, text) is None:
        return response_ids(tokenizer, text)
    writable(text, "a reply")
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


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
