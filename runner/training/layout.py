"""Answers laid out for a forward pass: side by side behind their prompt, or each in a sequence of its own.

Side by side, an answer's tokens attend to the prompt and to their own answer, and have the positions that
they would have if they stood alone. So the prompt passes through the model once, and an answer is not padded
to the length of another. The last token of an answer predicts nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from subvene.runner.data.examples import Answers
from subvene.runner.models.devices import input_device


@dataclass(frozen=True)
class Layout:
    """One batch.

    Attributes:
        inputs: what the model is called with.
        predicting: of the flattened batch, the token that predicts each answer token, answer by answer.
        targets: those answer tokens.
        counts: how many each answer has.
    """

    inputs: dict[str, torch.Tensor]
    predicting: torch.Tensor
    targets: torch.Tensor
    counts: list[int]

    @property
    def width(self) -> int:
        """Tokens of a sequence, padding included."""
        return self.inputs["input_ids"].shape[1]


def tokens_of(answers: Answers, rows: Sequence[int]) -> int:
    """Tokens of a sequence that holds these answers of one prompt."""
    return len(answers.rows[rows[0]][0]) + sum(len(answers.rows[row][1]) - 1 for row in rows)


def starts_of(answers: Answers, rows: Sequence[int]) -> list[int]:
    """Where each answer begins in a sequence that holds these answers of one prompt."""
    passed = (len(answers.rows[row][1]) - 1 for row in rows)
    return list(accumulate(passed, initial=len(answers.rows[rows[0]][0])))[:-1]


def lay_out(answers: Answers, sequences: Sequence[Sequence[int]], pad_id: int, model: Any) -> Layout:
    """Lay answers out.

    Args:
        answers: of which `sequences` names rows.
        sequences: rows of one prompt each.
        pad_id: any token id.
        model: that they are for.
    """
    width = max(tokens_of(answers, rows) for rows in sequences)
    ids = torch.full((len(sequences), width), pad_id)
    position = torch.zeros_like(ids)
    # Which answer a token is of: 0 the prompt, −1 padding.
    part = torch.full_like(ids, -1)
    predicting: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    for s, rows in enumerate(sequences):
        prompt = answers.rows[rows[0]][0]
        length = len(prompt)
        ids[s, :length] = torch.tensor(prompt)
        position[s, :length], part[s, :length] = torch.arange(length), 0
        for number, (row, start) in enumerate(zip(rows, starts_of(answers, rows), strict=True), 1):
            answer = answers.rows[row][1]
            end = start + len(answer) - 1
            ids[s, start:end] = torch.tensor(answer[:-1], dtype=torch.long)
            position[s, start:end], part[s, start:end] = torch.arange(length, length + end - start), number
            predicting += [s * width + place for place in (length - 1, *range(start, end))]
            targets += answer
            counts.append(len(answer))
    inputs = {"input_ids": ids, "attention_mask": (part >= 0).long()}
    if any(len(rows) > 1 for rows in sequences):
        inputs |= {"attention_mask": _mask(part, model.dtype), "position_ids": position}
    device = input_device(model)
    return Layout(
        {name: tensor.to(device) for name, tensor in inputs.items()},
        torch.tensor(predicting, device=device),
        torch.tensor(targets, device=device),
        counts,
    )


def _mask(part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to attention scores, [sequences, 1, queries, keys]: 0 where a key is seen.

    Padding stands last, where what precedes it does not see it.
    """
    key, query = part.unsqueeze(1), part.unsqueeze(2)
    seen = ((key == 0) | (key == query)) & torch.ones(part.shape[1], part.shape[1]).tril().bool()
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)
