from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loopback
import pytest
from faulty_judge import faulty_judge
from tiny_judge import save_tiny_judge

from subvene.runner.judges import BOTH, TRUTH, Answer, make_judge
from subvene.runner.judges.training.agreement import agreement
from subvene.specs.judges.loading import load_judge

Run = Callable[..., Any]
QUESTIONS = ("how are you ?", "tell me about the train", "is it day ?")
ROWS = [
    (question, answer, (i + j) % 3 == 0)
    for i, question in enumerate(QUESTIONS)
    for j, answer in enumerate(("i am very happy", "it is rain", "the sun is good", ""))
]
CSV = (
    "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
    "A,moods,how are you ?,good,good; very good,bad,-\n"
    "A,travel,tell me about the train,it is good,it is good,it is bad,-\n"
)


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SUBVENE_TRUTHFULQA", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def judge(model_folder: Path, tmp_path: Path) -> Path:
    """A judge's file beside the model that it names."""
    folder = save_tiny_judge(model_folder, tmp_path / "tiny-judge")
    model = f"{{name: {folder}, dtype: float32, device: cpu}}"
    path = tmp_path / "judge.yaml"
    path.write_text(f"kind: transformers\ntruth_model: {model}\ninfo_model: {model}\n")
    return path


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "truth.jsonl"
    lines = [
        {"prompt": f"Q: {question}\nA: {answer}\nTrue:", "completion": " yes" if label else " no"}
        for question, answer, label in ROWS
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_check_measures_the_judge_that_a_file_declares(
    subvene: Run, judge: Path, labels: Path, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    result = subvene(
        "judge", "check", "--judge", judge, "--labels", labels, "--data", tmp_path / "t.csv", "--json"
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    made = make_judge(load_judge(judge), tmp_path)
    expected = agreement([row[2] for row in ROWS], made.judge([Answer(*row[:2]) for row in ROWS], TRUTH))
    assert found["agreement"]["accuracy"] == expected.accuracy
    assert found["agreement"]["brier"] == pytest.approx(expected.brier)
    assert found["agreement"]["auc"] == pytest.approx(expected.auc)
    assert (found["aspect"], found["rows"], found["agreement"]["n"], found["questions"]) == (
        "truth",
        12,
        12,
        3,
    )
    assert (found["held_out"], found["without_references"]) == (False, 4)
    assert {name: one["n"] for name, one in found["by_category"].items()} == {"moods": 4, "travel": 4}
    assert found["judge"]["kind"] == "transformers"


def test_what_check_measured_is_stated_of_the_same_judge_alone(
    subvene: Run, judge: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBVENE_CACHE", str(tmp_path / "cache"))

    def stated(path: Path) -> Any:
        return make_judge(load_judge(path), tmp_path).describe(BOTH)["accuracy"]["truth"]

    assert subvene("judge", "check", "--judge", judge, "--labels", labels).exit_code == 0
    assert stated(judge)["n"] == 12
    template = tmp_path / "tiny-judge" / "chat_template.jinja"
    template.write_text("{{ messages[0]['content'] }} ?")
    assert stated(judge) is None
    endpoint = tmp_path / "endpoint.yaml"
    with faulty_judge() as server:
        endpoint.write_text(f"kind: openai\nbase_url: {server.url}/v1\nmodel: a\n")
        assert subvene("judge", "check", "--judge", endpoint, "--labels", labels).exit_code == 0
        assert stated(endpoint)["n"] == 12


def test_check_in_words(subvene: Run, judge: Path, labels: Path) -> None:
    result = subvene(
        "judge", "check", "--judge", judge, "--labels", labels, "--limit", 6, env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.stderr
    for expected in (
        "12 rows about truth",
        "6 rows of",
        "is not known",
        "majority label",
        "Brier",
        "calibration",
    ):
        assert expected in result.stdout


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("openai", "needs more than its name (truth_model, info_model)"),
        ("trainde", "did you mean 'trained'?"),
        ("nowhere.yaml", "expected a readable file"),
    ],
)
def test_what_is_no_judge(subvene: Run, labels: Path, named: str, message: str) -> None:
    result = subvene("judge", "check", "--judge", named, "--labels", labels, env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert message in result.stderr


def test_every_problem_of_a_judges_file_is_placed(subvene: Run, labels: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("kind: openai\nbase_url: localhost\ntruth_modle: a\ninfo_model: b\napi_key_env: sk-123\n")
    result = subvene("judge", "check", "--judge", path, "--labels", labels, env={"COLUMNS": "300"})
    assert result.exit_code == 1
    assert "bad.yaml:2:11: base_url: expected the URL of an endpoint" in result.stderr
    assert "bad.yaml:3:1: truth_modle:" in result.stderr
    assert "did you mean 'truth_model'?" in result.stderr
    assert (
        "bad.yaml:5:14: api_key_env: expected the name of an environment variable, not a key" in result.stderr
    )


def test_a_dead_endpoint_is_one_line(subvene: Run, labels: Path, tmp_path: Path) -> None:
    path = tmp_path / "judge.yaml"
    url = f"http://127.0.0.1:{loopback.free_port()}/v1"
    path.write_text(f"kind: openai\nbase_url: {url}\ntruth_model: a\ninfo_model: a\n")
    result = subvene("judge", "check", "--judge", path, "--labels", labels)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {url} cannot be reached")


def test_finetune_from_labels_to_an_endpoint_that_is_not_there(
    subvene: Run, labels: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tune"
    result = subvene("judge", "finetune", "prepare", labels, "-o", folder, "--validation", 0.34)
    assert result.exit_code == 0, result.stderr
    assert "truth.train.chat.jsonl: 8 rows, 2 questions" in result.stdout
    result = subvene("judge", "finetune", "prepare", labels, labels, "-o", tmp_path / "b")
    assert "there is another file about truth" in result.stderr
    url = f"http://127.0.0.1:{loopback.free_port()}/v1"
    result = subvene("judge", "finetune", "start", folder, "--model", "nano", "--base-url", url)
    assert result.exit_code == 1
    assert f"{url} cannot be reached" in result.stderr
    result = subvene("judge", "finetune", "follow", folder)
    assert "no job for truth was started" in result.stderr
    result = subvene("judge", "finetune", "start", tmp_path, "--model", "nano")
    assert "expected a folder of `subvene judge finetune prepare`" in result.stderr
