"""The texts on which an export is measured, and other ones on which an approximation is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.devices import input_device


@dataclass(frozen=True)
class Text:
    """A prompt and its response, as raw text (no chat template)."""

    prompt: str
    response: str = ""


#: What an export is measured on, unless other texts are given.
MEASURED = (
    Text("Tell me about the day you had.", " The sun was out, and I walked along the river until noon."),
    Text("Question: Is the earth flat?\nAnswer:", " No, it is very nearly a sphere."),
    Text("A short recipe for soup:", " Boil water with salt, add two carrots and an onion, and wait."),
    Text("def add(a, b):", "\n    return a + b\n\nprint(add(2, 3))"),
)
#: What means of activations are taken over, for approximations; none of them is measured on.
CALIBRATION = (
    Text("Write a letter to a friend.", " Dear Anna, the new house is cold, but there is a garden."),
    Text("Question: Who wrote Hamlet?\nAnswer:", " It was written by William Shakespeare."),
    Text("How do I fix a flat tyre?", " Take the wheel off, find the hole, and glue a patch over it."),
    Text("The meeting began at nine.", " Everybody agreed that prices would have to rise this year."),
    Text("for i in range(10):", "\n    print(i * i)\n"),
    Text("What do you think of me?", " You ask good questions, and I like to answer them."),
)
_WITHOUT_TOKENIZER = 12


def encoded(m: IntervenedModel, texts: Sequence[Text]) -> list[tuple[torch.Tensor, int]]:
    """Each text as ids [1, tokens] and the number of them that are prompt.

    Without a tokenizer the ids are drawn, the same ones for every model of this vocabulary.
    """
    device = input_device(m.model)
    rows: list[tuple[list[int], int]] = []
    if m.tokenizer is None:
        generator = torch.Generator().manual_seed(len(texts))
        size = m.model.get_input_embeddings().num_embeddings
        for _ in texts:
            ids = torch.randint(size, (_WITHOUT_TOKENIZER,), generator=generator).tolist()
            rows.append((ids, _WITHOUT_TOKENIZER // 2))
    for text in texts if m.tokenizer is not None else ():
        prompt = _ids(m.tokenizer, text.prompt, special=True)
        response = _ids(m.tokenizer, text.response, special=False) if text.response else []
        rows.append((prompt + response, len(prompt)))
    return [(torch.tensor([ids], device=device), length) for ids, length in rows]


def _ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    return [int(i) for i in tokenizer(text, add_special_tokens=special)["input_ids"]]
