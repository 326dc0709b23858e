from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

Run = Callable[..., Any]


def test_the_artifact_holds_every_layer_and_generates(subvene: Run, experiment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "art"
    result = subvene("fit", experiment, "-o", folder)
    assert result.exit_code == 0, result.stderr
    tensors = safetensors.torch.load_file(folder / "tensors.safetensors")
    assert {f"glad.block_output[{layer}]" for layer in range(3)} <= set(tensors)
    assert "glad from 2 pairs of texts" in result.stdout
    # The table's numbers are the tensors' norms, and the layer that the spec edits is the marked one.
    for layer in range(3):
        norm = f"{tensors[f'glad.block_output[{layer}]'].norm():.2f}"
        assert norm + (" *" if layer == 1 else "") in result.stdout
    assert result.stdout.count(" *") == 1
    assert subvene("generate", folder, "-p", "hello", "--max-new-tokens", 2).exit_code == 0


def test_json(subvene: Run, experiment: Path, tmp_path: Path) -> None:
    document = json.loads(subvene("fit", experiment, "-o", tmp_path / "art", "--json").stdout)
    assert document["artifact"] == str(tmp_path / "art")
    assert document["provenance"]["pairs"] == 2
    assert set(document["provenance"]["norm_by_layer"]) == {"0", "1", "2"}


def test_without_a_fit_block(subvene: Run, steer: Path, tmp_path: Path) -> None:
    result = subvene("fit", steer, "-o", tmp_path / "art")
    assert result.exit_code == 1
    assert "no `fit:` block" in result.stderr


def test_what_is_in_the_way_is_said_before_the_work(
    subvene: Run, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subvene.runner.recipes.fitting.fit", lambda *a, **k: pytest.fail("it was fitted"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    result = subvene("fit", experiment, "-o", tmp_path / "mine")
    assert result.exit_code == 1
    assert "is no artifact" in result.stderr
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"
