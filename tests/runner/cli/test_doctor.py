"""`subvene doctor`: what is there, what is missing and what it would give, what is wrong."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from subvene.runner.cli import doctor
from subvene.runner.cli.app import app


def findings() -> tuple[int, dict[str, dict[str, str]]]:
    ran = CliRunner().invoke(app, ["doctor", "--json"])
    return ran.exit_code, {one["what"]: one for one in json.loads(ran.stdout)}


def test_versions_are_those_of_this_installation() -> None:
    code, found = findings()
    assert code == 0
    for name in ("torch", "transformers", "pyvene"):
        assert found[name] == {"what": name, "state": "ok", "says": version(name)}
    if not torch.accelerator.is_available():
        assert "no accelerator" in found["device"]["says"]


def test_what_is_missing_says_what_it_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_OPTIONAL", {"no_such_module": ("nothing", "a thing", "subvene[nothing]")})
    code, found = findings()
    assert code == 0
    assert found["nothing"]["state"] == "missing"
    assert found["nothing"]["says"] == "would give a thing: pip install 'subvene[nothing]'"


def test_a_library_of_another_version_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: "0.0.1" if name == "torch" else version(name))
    code, found = findings()
    assert code == 1
    assert found["torch"]["state"] == "wrong"
    assert "pip install 'torch>=" in found["torch"]["says"]


def test_a_cache_that_is_no_folder_and_data_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SUBVENE_TRUTHFULQA", str(tmp_path / "none.csv"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("SUBVENE_CACHE", str(tmp_path / "file" / "cache"))
    code, found = findings()
    assert code == 1
    assert str(tmp_path / "none.csv") in found["TruthfulQA"]["says"]
    assert found["cache"]["state"] == "wrong"


def test_a_person_reads_one_line_a_finding() -> None:
    ran = CliRunner().invoke(app, ["doctor"])
    assert ran.exit_code == 0
    assert len(ran.stdout.splitlines()) == len(findings()[1])
