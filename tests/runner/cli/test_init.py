"""`subvene init`: what it writes is valid as it stands, and nothing is written over."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from subvene.runner.cli.app import app
from subvene.runner.cli.init import Task
from subvene.specs import load_spec


def call(*args: str | Path) -> tuple[int, str]:
    ran = CliRunner().invoke(app, [str(arg) for arg in args])
    return ran.exit_code, ran.output


@pytest.mark.parametrize("task", list(Task))
def test_what_is_written_is_valid_and_has_its_data(task: Task, tmp_path: Path) -> None:
    code, said = call("init", task.value, tmp_path / "mine")
    spec = tmp_path / "mine" / f"{task.value}.yaml"
    assert code == 0
    assert str(spec) in said.replace("\n", "")
    assert call("validate", spec) == (0, f"{spec}: ok\n")
    # The schema that its first line names is there, and no line speaks of the checkout's examples.
    text = spec.read_text("utf-8")
    assert (spec.parent / text.splitlines()[0].partition("$schema=")[2]).is_file()
    assert "examples/" not in text


def test_another_model_stands_in_the_spec(tmp_path: Path) -> None:
    for task in Task:
        folder = tmp_path / task.value
        assert call("init", task.value, folder, "--model", "user/other")[0] == 0
        assert load_spec(folder / f"{task.value}.yaml").model.name == "user/other"


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("notes")
    code, said = call("init", "steer", tmp_path / "mine")
    assert code != 0
    assert "exists already" in said
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("bad", [["nothing"], ["steer", "new", "--model", " "]])
def test_what_is_no_task_or_no_model_writes_nothing(
    bad: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("init", *bad)[0] != 0
    assert list(tmp_path.iterdir()) == []
