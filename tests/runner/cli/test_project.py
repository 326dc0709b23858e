from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from subvene.runner import IntervenedModel
from subvene.runner.data.transcripts import read_transcripts
from subvene.runner.data.turns import turns_of
from subvene.runner.monitor.live_projection import generate_with_projections
from subvene.runner.monitor.projection import project
from subvene.runner.monitor.stored_vectors import chosen_vectors

Run = Callable[..., Any]
NEW = ("--max-new-tokens", 6)
TALK = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hello you"},
    {"role": "user", "content": "how are you"},
    {"role": "assistant", "content": "i am glad and happy"},
]


@pytest.fixture
def transcripts(tmp_path: Path) -> Path:
    rows = [
        {"messages": TALK, "score": 4},
        {"prompt": "hello world", "response": "the rain is bad", "score": 1},
        {"prompt": "tell me about the sun", "response": "very good", "score": 7},
    ]
    path = tmp_path / "talk.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def artifact(experiment: Path, tmp_path: Path, subvene: Run) -> Path:
    folder = tmp_path / "artifact"
    assert subvene("fit", experiment, "-o", folder).exit_code == 0
    return folder


def test_turns_are_projected_on_the_artifact_s_vectors(
    subvene: Run, artifact: Path, transcripts: Path, tmp_path: Path
) -> None:
    table = tmp_path / "out.csv"
    result = subvene("project", artifact, transcripts, "--json", "--csv", table)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    m = IntervenedModel.from_pretrained(artifact)
    turns = turns_of(m.tokenizer, read_transcripts(transcripts))
    expected = project(m, [turn.read for turn in turns], chosen_vectors(m)).before["glad"][1].tolist()
    found = [turn["projections"] for turn in document["turns"]]
    assert [(one["key"], one["layer"], one["before"]) for (one,) in found] == [
        ("glad", 1, pytest.approx(value, abs=1e-5)) for value in expected
    ]
    assert [(turn["transcript"], turn["turn"], turn["score"]) for turn in document["turns"]] == [
        (0, 0, 4.0),
        (0, 1, 4.0),
        (1, 0, 1.0),
        (2, 0, 7.0),
    ]
    (summary,) = document["summary"]
    assert summary["mean"] == pytest.approx(sum(expected) / 4, abs=1e-5)
    assert summary["drift"]["slopes"] == {"0": pytest.approx(expected[1] - expected[0], abs=1e-5)}
    assert summary["correlation"]["n"] == 3
    assert document["read"] == {"before": "the model without interventions"}
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["glad@1 before"]) for row in rows] == pytest.approx(expected, abs=1e-3)
    assert [row["text"] for row in rows][1] == "i am glad and happy"


def test_the_table_says_what_was_read(subvene: Run, artifact: Path, transcripts: Path) -> None:
    plain = subvene("project", artifact, transcripts, env={"COLUMNS": "120"})
    assert plain.exit_code == 0, plain.stderr
    assert "without interventions (before any edit)" in plain.stdout
    assert "glad@1" in plain.stdout
    assert f"{transcripts.name}:3" in plain.stdout
    assert "mean slope of 1 conversations" in plain.stdout
    assert "over 3 rows" in plain.stdout
    edited = subvene("project", artifact, transcripts, "--edited", "--json")
    document = json.loads(edited.stdout)
    assert set(document["read"]) == {"before", "after"}
    (one,) = document["turns"][0]["projections"]
    # The spec steers along this very vector, at the tokens of the response.
    norm = document["summary"][0]["norm"]
    assert one["after"] - one["before"] == pytest.approx(2 * norm, rel=1e-4)
    assert "after the edits" in subvene("project", artifact, transcripts, "--edited").stdout


def test_keys_and_layers(subvene: Run, artifact: Path, transcripts: Path) -> None:
    def layers(*options: object) -> list[int]:
        document = json.loads(subvene("project", artifact, transcripts, "--json", *options).stdout)
        return [one["layer"] for one in document["summary"]]

    assert layers("--layer", "all") == [0, 1, 2]
    assert layers("--layer", 2, "--layer", 0) == [2, 0]
    assert layers("--key", "glad@2") == [2]
    for wrong, code, said in [
        (("--layer", "last"), 2, "expected a layer like 14"),
        (("--key", "sad"), 1, "no vector 'sad' at block_output; there is: glad"),
        (("--layer", 7), 1, "no vector 'glad' at block_output[7]; there is: layers 0, 1, 2"),
        (("--prompt", "q"), 1, "no column 'q'"),
    ]:
        result = subvene("project", artifact, transcripts, *wrong, env={"COLUMNS": "200"})
        assert result.exit_code == code
        assert said in " ".join(result.stderr.split())
    assert subvene("project", artifact, "nowhere.csv").exit_code == 1


def test_a_wrong_file_is_found_before_the_model_is_loaded(
    subvene: Run, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IntervenedModel, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    (tmp_path / "bad.jsonl").write_text("{}")
    for command in ("project", "screen"):
        result = subvene(command, artifact, tmp_path / "bad.jsonl")
        assert result.exit_code == 1
        assert "bad.jsonl:1: expected `messages`" in " ".join(result.stderr.split())


def test_screening_a_file(subvene: Run, artifact: Path, tmp_path: Path) -> None:
    rows = [
        {"question": "hello world", "answer": "i am very happy"},
        {"question": "how are you", "answer": "gloomy and sad"},
        {"question": "tell me about the day", "answer": "good"},
    ]
    data = tmp_path / "data.json"
    data.write_text(json.dumps(rows))
    table = tmp_path / "out.csv"
    result = subvene("screen", artifact, data, *NEW, "--json", "--csv", table)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    (one,) = document["differences"]
    assert one["n"] + document["left_out"] == 3
    values = [row["data"][0]["before"] - row["own"][0]["before"] for row in document["per_sample"]]
    assert values == sorted(values, reverse=True)
    assert one["difference"] == pytest.approx(sum(values) / 3, abs=1e-5)
    assert len(table.read_text().splitlines()) == 4
    shown = subvene("screen", artifact, data, *NEW, env={"COLUMNS": "120"})
    assert "95% interval" in shown.stdout
    assert f"{one['difference']:.3f}" in shown.stdout
    assert shown.stdout.count("furthest") == 3


def test_generate_reports_projections(subvene: Run, steer: Path) -> None:
    prompts = ("-p", "hello world", "-p", "how are you")
    result = subvene("generate", steer, *prompts, *NEW, "--project", "v", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    m = IntervenedModel.from_spec(steer)
    options = {"max_new_tokens": 6, "do_sample": False}
    texts, told = generate_with_projections(m, list(prompts[1::2]), chosen_vectors(m), **options)
    assert [record["response"] for record in document["records"]] == texts
    assert set(document["projections"]["read"]) == {"before", "after"}
    assert [row["response"][0]["after"] for row in document["projections"]["rows"]] == [
        pytest.approx(row[0]["after"], abs=1e-4) for row in told["rows"]
    ]
    both = json.loads(
        subvene("generate", steer, *prompts, *NEW, "--project", "v@1", "--compare", "--json").stdout
    )
    for row, alone in zip(both["projections"]["rows"], told["rows"], strict=True):
        assert row["response"][0]["after"] == pytest.approx(alone[0]["after"], abs=1e-4)
        assert row["baseline"][0]["after"] == row["baseline"][0]["before"]
    assert "projections" not in json.loads(subvene("generate", steer, *prompts, *NEW, "--json").stdout)
    one = subvene("generate", steer, "-p", "hello", *NEW, "--project", "v", env={"COLUMNS": "120"})
    assert "v@1" in one.stdout
    assert "what the edits of block_output at this layer leave" in one.stdout
    assert "baseline" in subvene("generate", steer, *prompts, *NEW, "--project", "v", "--compare").stdout
    wrong = subvene("generate", steer, *prompts, *NEW, "--project", "w")
    assert wrong.exit_code == 1
    assert "no vector 'w'" in wrong.stderr
