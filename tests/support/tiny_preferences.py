"""Tiny preferences in token ids, and what is needed to train on them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from architectures import VOCAB
from torch import nn

from subvene.runner.data.examples import Example, split
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.training.experiments import Experiment, Trained
from subvene.runner.training.multiplex import EditShape
from subvene.runner.training.trainer import train_edits
from subvene.specs.recipes.localized_edit import LocalizedEditSpec

GOOD, BAD = ["glad", "happy", "good", "sun"], ["sad", "gloomy", "bad", "rain"]


def rows(count: int = 20) -> list[dict[str, str]]:
    """Preferences for glad answers, in the words of the tiny tokenizer; every prompt is another one."""
    draw = random.Random(5)
    return [
        {
            "prompt": " ".join(draw.choices(["day", "world", "you", "train", "hello", "how"], k=2 + i % 4))
            + f" {i}",
            "chosen": " ".join(draw.choices([*GOOD, "is", "it"], k=1 + i % 3)),
            "rejected": " ".join(["very", *draw.choices(BAD, k=1 + i % 2)]),
        }
        for i in range(count)
    ]


def examples_of(count: int = 10, seed: int = 0) -> list[Example]:
    """Pairs of random tokens; every two of them have one question, and one answer, in common."""
    draw = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.integers(1, VOCAB, draw.integers(low, high)).tolist())

    examples = []
    for question in range(-(-count // 2)):
        prompt, chosen = tokens(2, 7), tokens(1, 6)
        examples += [Example(f"q{question}", prompt, chosen, tokens(1, 6)) for _ in range(2)]
    return examples[:count]


def spec_of(**fields: Any) -> LocalizedEditSpec:
    default = {"key": "edit", "data": {"file": "x.jsonl"}, "learning_rate": 0.02, "batch_size": 3}
    return LocalizedEditSpec.model_validate(default | fields)


def experiment(
    name: str,
    heads: dict[int, tuple[int, ...]],
    examples: Sequence[Example],
    *,
    seed: int = 0,
    shape: dict[str, Any] | None = None,
    **fields: Any,
) -> Experiment:
    spec = spec_of(**fields)
    train, validation = split(examples, spec.validation, seed)
    return Experiment(name, spec, EditShape(heads, seed=seed, **(shape or {})), seed, train, validation)


def train(
    model: nn.Module,
    examples: Sequence[Example],
    *experiments: Experiment,
    folder: Path | None = None,
    **options: Any,
) -> list[Trained]:
    return train_edits(Anatomy.of(model), examples, experiments, pad_id=0, folder=folder, **options)
