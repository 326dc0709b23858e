"""`subvene serve`: what it is pointed at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_artifacts import STEERING, TENSORS, llama, spec_of

from subvene.runner.intervened.model import IntervenedModel

Run = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    spec = spec_of({**STEERING, "vector": {"key": "v"}})
    m = IntervenedModel.from_spec(spec, model=llama(), tensors=TENSORS)
    return m.save_pretrained(tmp_path / "cheerful")


def test_what_cannot_be_served_is_refused_before_a_model_is_loaded(
    subvene: Run, folder: Path, tmp_path: Path
) -> None:
    twice = subvene("serve", folder, f"cheerful={folder}")
    assert twice.exit_code == 2
    assert "two artifacts are called" in twice.output
    gone = subvene("serve", tmp_path / "gone")
    assert gone.exit_code == 1
    assert "no such file or folder" in gone.output
    spec = tmp_path / "spec.yaml"
    spec.write_text((folder / "intervention.yaml").read_text())
    assert subvene("serve", spec).exit_code != 0
