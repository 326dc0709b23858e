"""What is told to trackers, without any of them; tests/consumers/test_trackers.py has real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from subvene.runner.files.reporting import curves, is_reporting, report_cell, reporting
from subvene.specs import SpecError, trackers
from subvene.specs.loading import parse_spec

FIT = """\
subvene: 1
model: {name: gpt2}
fit: {recipe: mean_difference, key: a, layers: all, pairs: {texts: [{positive: a, negative: b}]}}
interventions:
- {kind: steering, layer: 1, vector: {key: a}, coefficient: 1.0, positions: all}
"""
SAMPLES = "evaluate: [{kind: samples, prompts: [hi]}]\n"


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: name if name in names else None)


def test_a_tracker_that_is_not_installed_is_refused_when_the_file_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(monkeypatch, "tensorboard")
    assert parse_spec(f"{FIT}{SAMPLES}report_to: tensorboard\n").trackers == ("tensorboard",)
    with pytest.raises(SpecError, match=r"7:26: report_to\[1\]: .* \(pip install mlflow\), found 'mlflow'"):
        parse_spec(f"{FIT}{SAMPLES}report_to: [tensorboard, mlflow]\n")
    with pytest.raises(SpecError, match="report_to: expected one of: tensorboard, wandb, trackio, mlflow"):
        parse_spec(f"{FIT}{SAMPLES}report_to: tensorbord\n")
    with pytest.raises(SpecError, match="a non-empty list of different trackers"):
        parse_spec(f"{FIT}{SAMPLES}report_to: [tensorboard, tensorboard]\n")


def test_a_file_with_nothing_to_report_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "wandb")
    with pytest.raises(SpecError, match=r"report_to: .*a recipe that trains by steps"):
        parse_spec(f"{FIT}report_to: wandb\n")


def test_without_trackers_nothing_is_told_and_nothing_is_imported(tmp_path: Path) -> None:
    with reporting((), "project", tmp_path / "events"):
        assert not is_reporting()
        with curves("run", {}) as log:
            log({"loss": 1.0}, 1)
        report_cell("cell", {}, {"score": 1.0})
    assert not (tmp_path / "events").exists()


def test_whoever_is_told_is_told_no_more_after_the_block(tmp_path: Path) -> None:
    def broken() -> Any:
        with reporting(("tensorboard",), "project", tmp_path):
            assert is_reporting()
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert not is_reporting()
