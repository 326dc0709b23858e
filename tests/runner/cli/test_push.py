"""`subvene push` and `subvene pull`, against the Hub on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, connect, serve_hub
from huggingface_hub import ModelCard

from subvene.runner.artifacts import artifact
from subvene.runner.experiments.results import Condition, Metric, Results
from subvene.runner.intervened.model import IntervenedModel

Run = Callable[..., Any]
NAME = "ann/glad"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub(tmp_path / "server") as server:
        connect(monkeypatch, server, tmp_path / "home")
        yield server


@pytest.fixture
def folder(steer: Path, tmp_path: Path) -> Path:
    return IntervenedModel.from_spec(steer).save_pretrained(tmp_path / "artifact")


def test_push_and_pull(subvene: Run, folder: Path, server: Hub, tmp_path: Path) -> None:
    measured = tmp_path / "results.json"
    metrics = {"contrast": Metric(mean=0.5, n=2), "contrast_preferred": Metric(mean=1.0, n=2)}
    condition = Condition(name="intervened", label="+7", point={"c": 7.0}, metrics=metrics)
    evaluation = {"kind": "contrast", "name": "contrast", "coefficients": [7.0], "keys": ["a", "b"]}
    found = Results(kind="look", conditions=(condition,), sections={"look": {"evaluations": [evaluation]}})
    measured.write_text(found.to_json())
    options = ("--private", "--branch", "v2", "-m", "hello", "--license", "mit", "--results", measured)
    result = subvene("push", folder, NAME, *options)
    assert result.exit_code == 0, result.stderr
    newest = server.repositories[NAME].history("v2")[0]
    assert newest.message == "hello"
    assert f"pushed   {folder}  to {NAME}" in result.stdout
    assert f"commit   {server.url}/{NAME}/commit/{newest.oid}" in result.stdout
    assert server.repositories[NAME].private
    card = ModelCard(server.content(NAME, "README.md", "v2").decode())
    assert card.data.license == "mit"
    assert "| 7 | 0.5 | – | 1 |" in card.text
    result = subvene("pull", NAME, "-o", tmp_path / "out", "--revision", "v2")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"pulled   {tmp_path / 'out'}  from {NAME} at {newest.oid[:12]}\n"
    assert artifact.read(tmp_path / "out").spec == artifact.read(folder).spec


def test_one_json_document(subvene: Run, folder: Path, server: Hub, tmp_path: Path) -> None:
    pushed = json.loads(subvene("push", folder, NAME, "--json").stdout)
    oid = server.repositories[NAME].branches["main"]
    assert pushed == {"repository": NAME, "commit": oid, "url": f"{server.url}/{NAME}/commit/{oid}"}
    out = tmp_path / "out"
    pulled = json.loads(subvene("pull", NAME, "-o", out, "--json").stdout)
    assert pulled == {"repository": NAME, "commit": oid, "artifact": str(out)}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("pull", "ann/nothing", "-o", "out"), "there is no repository ann/nothing"),
        (("pull", "nothing", "-o", "out"), "expected user/name"),
        (("push", "nowhere", NAME), "nowhere: no such folder"),
        (("push", "artifact", "bob/glad"), "does not let you write to bob/glad"),
        (("push", "artifact", NAME, "--results", "none.json"), "none.json: cannot be read as the results"),
        (("push", "artifact", NAME, "--license", "The Best"), "licence 'The Best': expected one of"),
    ],
)
@pytest.mark.usefixtures("folder", "server")
def test_an_error_is_one_line_and_exit_code_1(
    subvene: Run, args: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = subvene(*args)
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not Path("out").exists()


def test_what_is_on_the_hub_is_used_by_its_name(subvene: Run, folder: Path, server: Hub) -> None:
    subvene("push", folder, NAME)
    shown, local = (subvene("show", source, "--json") for source in (NAME, folder))
    assert shown.exit_code == 0, shown.stderr
    assert json.loads(shown.stdout)["interventions"] == json.loads(local.stdout)["interventions"]
    options = ("-p", "hello", "--max-new-tokens", "4", "--json")
    generated, expected = (subvene("generate", source, *options) for source in (NAME, folder))
    assert generated.exit_code == 0, generated.stderr
    assert json.loads(generated.stdout) == json.loads(expected.stdout)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("ann/nothing", "is no folder here, and on the Hub:"),
        ("examples/misspelt.yaml", "no such file or folder"),
        ("a/b/c", "no such file or folder"),
    ],
)
def test_what_is_nowhere(subvene: Run, server: Hub, source: str, said: str) -> None:
    asked = len(server.seen)
    result = subvene("generate", source, "-p", "hello")
    assert result.exit_code == 1
    assert said in result.stderr
    assert (len(server.seen) > asked) == (source == "ann/nothing")
