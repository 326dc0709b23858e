"""What callers hand in as prompts, as a list of texts and conversations, for `text.prompt_ids` to render."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import JsonValue

from subvene.runner.data.text import Messages, TextError

_EXPECTED = (
    "expected a text, a conversation (a list of {'role': …, 'content': …}), or a list of texts and "
    "conversations"
)


def as_prompts(prompts: Any) -> list[str | Messages]:
    """One prompt or many as a list of them.

    Args:
        prompts: a text; a conversation, which is a list of messages (or one message); or a list of these. A
            message's content may be a list of text parts, as vision models' processors take it.

    Raises:
        TextError: something else; the message says what it was and where it belongs.
    """
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Mapping) and "role" in prompts:
        return [[_message(prompts, "the prompt")]]
    if isinstance(prompts, torch.Tensor | Mapping):
        raise TextError(
            f"prompts: {_EXPECTED}; found a {type(prompts).__name__}. Token ids go to "
            "generate_ids(input_ids, attention_mask)"
        )
    if prompts is None or (not isinstance(prompts, Sequence) and not hasattr(prompts, "__iter__")):
        raise TextError(f"prompts: {_EXPECTED}; found {prompts!r}")
    items = list(prompts)
    if items and all(isinstance(item, Mapping) and "role" in item for item in items):
        return [[_message(item, f"message {i}") for i, item in enumerate(items)]]
    return [_prompt(item, i) for i, item in enumerate(items)]


def _prompt(item: Any, i: int) -> str | Messages:
    if isinstance(item, str):
        return item
    if isinstance(item, list | tuple) and item and all(isinstance(m, Mapping) for m in item):
        return [_message(message, f"prompt {i}, message {j}") for j, message in enumerate(item)]
    hint = ". Token ids go to generate_ids(input_ids, attention_mask)" if _is_ids(item) else ""
    raise TextError(f"prompt {i}: expected a text or a non-empty list of messages, found {item!r:.60}{hint}")


def _is_ids(item: Any) -> bool:
    return isinstance(item, int | torch.Tensor) or (
        isinstance(item, list | tuple) and any(isinstance(part, int) for part in item)
    )


def _message(message: Mapping[str, JsonValue], where: str) -> dict[str, JsonValue]:
    content: object = message.get("content")
    if not isinstance(message.get("role"), str) or content is None:
        raise TextError(
            f"{where}: expected {{'role': …, 'content': …}} with texts, found {dict(message)!r:.80}"
        )
    if isinstance(content, str):
        return dict(message)
    if isinstance(content, list | tuple) and all(isinstance(part, Mapping) for part in content):
        if others := sorted(
            {str(part.get("type")) for part in content if not isinstance(part.get("text"), str)}
        ):
            raise TextError(
                f"{where}: content holds parts of type {', '.join(others)}; only text can be rendered here. "
                "Prepare the inputs with the model's processor and pass them to generate_ids"
            )
        return {**message, "content": "".join(part["text"] for part in content)}
    raise TextError(f"{where}: content must be a text or a list of text parts, found {content!r:.60}")
