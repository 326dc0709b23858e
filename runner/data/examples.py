"""What is trained on, as token ids: preferences, and the answers that they consist of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from subvene.runner.data.text import TextError
from subvene.runner.data.truthfulqa.splits import held_out


class Keyed(Protocol):
    """Something that belongs to a question, which its `key` names."""

    @property
    def key(self) -> str:
        """What names the question."""


@dataclass(frozen=True)
class Example:
    """A prompt, the answer that is wanted and the one that is not.

    Attributes:
        key: of the question; examples of one question are never on two sides of a split.
        prompt: token ids.
        chosen: token ids of the wanted answer.
        rejected: token ids of the unwanted one.
    """

    key: str
    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass(frozen=True)
class Answers:
    """Every different (prompt, answer) of some examples, once.

    Attributes:
        rows: (prompt ids, answer ids).
        prompts: of each row, the number of its prompt; rows of one prompt have one number.
        chosen: of each example, the row of its wanted answer.
        rejected: of each example, the row of its unwanted one.
    """

    rows: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    prompts: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Answers:
        """The answers of these examples.

        Raises:
            TextError: a prompt or an answer holds no token.
        """
        number: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        sides: tuple[list[int], list[int]] = ([], [])
        for i, example in enumerate(examples):
            for side, answer, what in zip(
                sides, (example.chosen, example.rejected), ("chosen", "rejected"), strict=True
            ):
                if not example.prompt or not answer:
                    raise TextError(
                        f"example {i}: the {what if example.prompt else 'prompt'} holds no token to train on"
                    )
                side.append(number.setdefault((example.prompt, answer), len(number)))
        prompt_number: dict[tuple[int, ...], int] = {}
        prompts = tuple(prompt_number.setdefault(prompt, len(prompt_number)) for prompt, _ in number)
        return cls(tuple(number), prompts, *map(tuple, sides))

    def length(self, row: int) -> int:
        """Tokens of a row, prompt and answer."""
        return sum(map(len, self.rows[row]))


def split(
    examples: Sequence[Keyed], fraction: float | None, seed: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Indices of the examples that are trained on, and of those held out: a share of the questions.

    Which questions a seed holds out depends on their keys alone; of TruthfulQA's they are those that ITI
    holds out.
    """
    held = held_out((example.key for example in examples), fraction or 0.0, f"validation {seed}")
    sides: tuple[list[int], list[int]] = ([], [])
    for i, example in enumerate(examples):
        sides[example.key in held].append(i)
    return tuple(sides[0]), tuple(sides[1])


def examples_sha256(examples: Sequence[Example]) -> str:
    """A hash of all that the examples say, and of their order."""
    rows = [[example.key, example.prompt, example.chosen, example.rejected] for example in examples]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
