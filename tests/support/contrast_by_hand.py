"""Activations of positive and negative texts, each text alone in a plain forward with a plain hook."""

from __future__ import annotations

from typing import Any

import torch

PAIRS = [
    ("i am very happy", "i am very gloomy"),
    ("the sun is good", "the rain is bad"),
    ("glad and happy", "sad and gloomy"),
    ("hello happy world", "hello sad world"),
    ("tell me a good day", "tell me a bad day"),
]
TEXTS = {"texts": [{"positive": positive, "negative": negative} for positive, negative in PAIRS]}


@torch.no_grad()
def of_words(loaded: Any, words: str, layer: int) -> torch.Tensor:
    """What block `layer` puts out for a text of whole words, float64 [tokens, width]."""
    model, tokenizer = loaded
    seen: list[torch.Tensor] = []
    handle = model.model.layers[layer].register_forward_hook(lambda _m, _a, output: seen.append(output))
    model(torch.tensor([tokenizer.convert_tokens_to_ids(words.split())]))
    handle.remove()
    return seen[0][0].double()


def last_tokens(loaded: Any, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of PAIRS, the last tokens of the positive texts and of the negative ones, [pairs, width] each."""
    positive, negative = (
        torch.stack([of_words(loaded, pair[side], layer)[-1] for pair in PAIRS]) for side in (0, 1)
    )
    return positive, negative


def instruction(text: str) -> str:
    """A user's turn as the tiny model's template has it, up to the cursor."""
    return f"<s> user : {text} <s> assistant :"
