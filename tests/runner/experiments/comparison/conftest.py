"""A comparison small enough to run in seconds: a tiny model, twelve questions, every part real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_questions import PRIMER, QUESTIONS, TEXTS, write_questions

COMPARISON = """\
fit: {recipe: iti, key: t, data: {file: questions.csv}, select: {rule: top_k, k: 3},
  ranking_folds: 2, validation: 0.34}
interventions:
- {kind: head_direction, name: iti, directions: {key: t}, strength: 3, positions: response}
conditions:
- {name: baseline, interventions: []}
- {name: off, set: {iti.strength: 0}}
- {name: iti}
- {name: best, sweep: {iti.strength: [1, 5], fit.select.k: [2, 4]}, choose: {by: mc2}}
- {name: everywhere, like: best, set: {iti.positions: all}}
- {name: baked, like: best, set: {iti.positions: all}, bake: true}
seeds: [1, 2]
folds: 2
evaluate:
- {kind: truthfulqa, data: {file: questions.csv}, preset: qa, primer: primer.txt, max_new_tokens: 5,
   judge: {kind: reference}}
- {kind: divergence, texts: {file: texts.txt}, max_tokens: 8}
"""


@pytest.fixture
def questions_file(tmp_path: Path) -> Path:
    """`questions.csv` in TruthfulQA's form."""
    return write_questions(tmp_path / "questions.csv", QUESTIONS)


@pytest.fixture
def comparison(write: Callable[..., Path], questions_file: Path, tmp_path: Path) -> Path:
    """The experiment's file, with all that it names beside it."""
    (tmp_path / "primer.txt").write_text(PRIMER)
    (tmp_path / "texts.txt").write_text(TEXTS)
    return write(COMPARISON, "comparison.yaml")
