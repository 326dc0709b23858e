"""TruthfulQA of one model: both conditions, judged by a judge that needs nothing but the references."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from subvene.runner import IntervenedModel
from subvene.runner.evaluations import EVALUATIONS
from subvene.runner.truthfulqa.prompts import PromptError
from subvene.runner.truthfulqa.scoring import score_choices
from subvene.specs import TruthfulQASpec

EDIT = """\
interventions:
- {kind: steering, layer: 1, vector: {file: t.safetensors, key: u}, coefficient: 1.5, positions: response}
"""
ROWS = [
    [
        "Days",
        "is the day good ?",
        "the day is good",
        "the day is good; it is a very good day",
        "the day is bad",
    ],
    [
        "Days",
        "are you a train ?",
        "i am not a train",
        "i am not a train",
        "i am a train; i am a very sad train",
    ],
    ["Days", "is it rain ?", "it is not", "it is not", "it is rain"],
]


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., TruthfulQASpec]:
    with (tmp_path / "q.csv").open("w", newline="") as file:
        header = ["Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers"]
        csv.writer(file).writerows([header, *ROWS])
    (tmp_path / "primer.txt").write_text("Q: hello world\nA: hello\n")
    (tmp_path / "instruction.txt").write_text("tell me about the day")
    fields = {
        "data": {"file": "q.csv"},
        "primer": "primer.txt",
        "instruction": "instruction.txt",
        "judge": {"kind": "reference"},
        "max_new_tokens": 4,
        "batch_size": 2,
    }
    return lambda **more: TruthfulQASpec.model_validate(fields | more)


def test_both_conditions(
    spec: Callable[..., TruthfulQASpec], write: Callable[..., Path], tmp_path: Path
) -> None:
    m = IntervenedModel.from_spec(write(EDIT))
    found = EVALUATIONS["truthfulqa"](m, spec(), tmp_path)
    baseline, intervened = found["records"]
    assert (baseline["condition"], intervened["condition"]) == ("baseline", "intervened")
    for record in (baseline, intervened):
        assert {"mc1", "mc2", "mc3", "true", "empty", "true_without_verdict"} < record.keys()
        assert 0 < record["mc2"] < 1
    assert baseline["mc2"] != intervened["mc2"]
    assert found["version"] == "other (3 questions)"
    assert found["judge"]["kind"] == "reference"
    assert found["receipts"]["baseline"] == []
    # Multiple choice and generation, each with a receipt of its own.
    assert [one["edited"]["cursor"] for one in found["receipts"]["intervened"]] == [3, 3]
    assert len(found["answers"]["baseline"]) == 3
    assert found["from_scratch"] == {"baseline": None, "intervened": None}


def test_one_measure_of_some_questions_of_a_plain_model(
    spec: Callable[..., TruthfulQASpec], loaded: tuple, tmp_path: Path
) -> None:
    plain = IntervenedModel.plain(*loaded)
    found = EVALUATIONS["truthfulqa"](plain, spec(measure=["multiple_choice"], limit=2), tmp_path)
    (record,) = found["records"]
    assert set(record) == {"condition", "mc1", "mc2", "mc3"}
    assert (found["questions"], found["judge"], found["answers"]) == (2, None, {})


def test_a_flaw_shows_before_the_model_works(
    spec: Callable[..., TruthfulQASpec],
    loaded: tuple,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{score_choices.__module__}.score_choices", None)
    with pytest.raises(PromptError, match=r"none\.txt"):
        EVALUATIONS["truthfulqa"](IntervenedModel.plain(*loaded), spec(primer="none.txt"), tmp_path)
