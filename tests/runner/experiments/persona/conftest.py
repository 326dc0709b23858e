"""A trait of a few words for the tiny model, and a judge that counts words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from counting_judge import Counting, install

from subvene.runner.data.traits import Trait, read_trait
from subvene.specs import TraitSpec

QUESTIONS = ["how are you", "tell me about rain", "hello"]
EVALUATION = ["are you glad", "tell me", "the train", "about day and sun", "is it good"]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Counting:
    """The counting judge, in the place of the trained one."""
    counting = Counting()
    install(counting, monkeypatch)
    return counting


@pytest.fixture
def document() -> dict[str, Any]:
    """A trait file in the published form, with our evaluation questions."""
    return {
        "instruction": [
            {"pos": "good good happy", "neg": "bad sad"},
            {"pos": "glad sun", "neg": "not rain bad"},
        ],
        "questions": QUESTIONS,
        "eval_prompt": "How early? {question} {answer} 0-100",
        "evaluation_questions": EVALUATION,
    }


@pytest.fixture
def trait_file(tmp_path: Path, document: dict[str, Any]) -> Path:
    """It, on disk."""
    path = tmp_path / "early.json"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def trait(trait_file: Path) -> Trait:
    """It, read."""
    return read_trait(TraitSpec(name="early", file=str(trait_file)), trait_file.parent)
