"""A newcomer's desk: an empty working folder, a small model in it, and the command line."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_model import write_tiny_model
from typer.testing import CliRunner

from subvene.runner.cli.app import app

Type = Callable[..., str]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the working directory, with a model in `model/`."""
    monkeypatch.chdir(tmp_path)
    write_tiny_model(Path("model"))
    return tmp_path


@pytest.fixture
def typed(desk: Path) -> Type:
    """Types a line that begins with `subvene`; what both streams then show."""

    def typed(line: str, code: int = 0) -> str:
        program, *words = shlex.split(line)
        assert program == "subvene"
        ran = CliRunner().invoke(app, words)
        if ran.exception is not None and not isinstance(ran.exception, SystemExit):
            raise ran.exception
        assert ran.exit_code == code, ran.output
        return ran.output

    return typed
