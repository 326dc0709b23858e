"""Blocks of reasoning in replies: where they begin and end, and what of a reply is its answer.

A reply is read in one way, wherever it stands: with `reasoning: drop`, the default, the answer is what
follows the block; with `keep` the block is part of it. A template may end inside an opened block; a reply
that has none is then read behind an empty one, since where it would stand otherwise the model reasons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from subvene.runner.models.chat_settings import chat_of


@dataclass(frozen=True)
class Markers:
    """What surrounds a block of reasoning, and how one that a template has opened is closed unused."""

    open: str
    close: str
    unused: str


_HARMONY = "<|end|><|start|>assistant<|channel|>final<|message|>"
BLOCKS = (
    Markers("<think>", "</think>", "\n</think>\n\n"),
    Markers("[THINK]", "[/THINK]", "[/THINK]"),
    Markers("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", _HARMONY),
)
"""Of Qwen3, DeepSeek R1 and most others; of Magistral; of gpt-oss."""


def without_reasoning(text: str) -> str:
    """What follows a reply's block of reasoning; nothing, where the block does not end."""
    for block in BLOCKS:
        if block.close in text:
            return text.partition(block.close)[2].lstrip("\n")
        if text.lstrip().startswith(block.open):
            return ""
    return text


def without_markers(text: str) -> str:
    """The text less the marks of blocks, which may be special tokens of a tokenizer."""
    for block in BLOCKS:
        text = text.replace(block.close, "").replace(block.open, "")
    return text


def opened(tokenizer: Any, prompt: Sequence[int]) -> Markers | None:
    """The block that a prompt ends in, if it ends inside of one."""
    end = tokenizer.decode(prompt[-8:]).rstrip()
    return next((block for block in BLOCKS if end.endswith(block.open)), None)


def answer_of(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> tuple[int, str]:
    """Where the answer begins among generated tokens, and what it says.

    Args:
        tokenizer: the model's.
        prompt: token ids; its template may have opened a block of reasoning.
        tokens: what was generated.

    Returns:
        Index of the first token of the answer, and its text without the spaces around it: all of it with
        `reasoning: keep`; `len(tokens)` and nothing, where a block does not end.
    """
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    if chat_of(tokenizer).reasoning == "keep":
        return 0, text.strip()
    whole = tokenizer.decode(tokens)
    for block in BLOCKS:
        if block.close in whole:
            start = _first(tokenizer, tokens, block.close)
            return start, tokenizer.decode(tokens[start:], skip_special_tokens=True).strip()
    if opened(tokenizer, prompt) or any(whole.lstrip().startswith(block.open) for block in BLOCKS):
        return len(tokens), ""
    return 0, text.strip()


def _first(tokenizer: Any, tokens: Sequence[int], mark: str) -> int:
    """How many tokens it takes until a mark is complete."""
    low, high = 1, len(tokens)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if mark in tokenizer.decode(tokens[:middle]) else (middle + 1, high)
    return low
