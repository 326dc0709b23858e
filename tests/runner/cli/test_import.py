from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from subvene.runner.cli.import_ import Format
from subvene.runner.exchange.imports import FORMATS
from subvene.runner.intervened.model import IntervenedModel

Run = Callable[..., Any]


@pytest.fixture
def vector(tmp_path: Path) -> Path:
    path = tmp_path / "kind_response_avg_diff.pt"
    torch.save(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), path)
    return path


def test_a_vector_becomes_an_artifact_that_generates(
    subvene: Run, vector: Path, model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "artifact"
    result = subvene("import", vector, "-o", folder, "--model", model_folder, "--layer", 1, "--strength", 2)
    assert result.exit_code == 0, result.stderr
    assert "means    row 2 of the file is block_output[1]" in result.stdout
    assert f"saved    {folder}" in result.stdout
    shown = subvene("show", folder)
    assert "format persona-vector" in shown.stdout
    assert "kind.block_output[1]" in shown.stdout
    assert subvene("generate", folder, "-p", "hello", "--max-new-tokens", 2).exit_code == 0
    m = IntervenedModel.from_pretrained(folder)
    assert m.spec.interventions[0].coefficient == 2.0
    assert torch.equal(m.tensors["kind.block_output[0]"], torch.load(vector, weights_only=True)[1])


def test_json(subvene: Run, vector: Path, model_folder: Path, tmp_path: Path) -> None:
    command = ("import", vector, "-o", tmp_path / "a", "--model", model_folder, "--from", "persona-vector")
    document = json.loads(subvene(*command, "--layer", 0, "--layer", 2, "--json").stdout)
    assert document["artifact"] == str(tmp_path / "a")
    assert document["provenance"]["conversion"][:2] == [
        "row 1 of the file is block_output[0]",
        "row 3 of the file is block_output[2]",
    ]


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        ((), "say which block with --layer", 1),
        (("--layer", 3), "expected layers from 0 to 2", 1),
        (("--layer", 1, "--from", "peft"), "--layer has no meaning for a peft LoRA adapter", 1),
        (("--layer", 1, "--strength", "nan"), "finite", 2),
        (("--layer", 1, "--from", "onnx"), "onnx", 2),
        (("--layer", 1, "--key", "../k"), "--key '../k'", 1),
    ],
)
def test_refusals_write_nothing(
    subvene: Run,
    vector: Path,
    model_folder: Path,
    tmp_path: Path,
    options: tuple[Any, ...],
    message: str,
    code: int,
) -> None:
    result = subvene("import", vector, "-o", tmp_path / "a", "--model", model_folder, *options)
    assert result.exit_code == code
    assert message in result.stderr
    assert not (tmp_path / "a").exists()


def test_weights_are_loaded_last(
    subvene: Run, vector: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "subvene.runner.exchange.imports.formats.load_model", lambda *a, **k: pytest.fail("loaded")
    )
    torch.save(torch.zeros(9, 32), vector)
    result = subvene("import", vector, "-o", tmp_path / "a", "--model", model_folder, "--layer", 1)
    assert result.exit_code == 1
    assert "expected [4, 32] for this model" in result.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    result = subvene("import", vector, "-o", tmp_path / "mine", "--model", model_folder, "--layer", 1)
    assert "is no artifact" in result.stderr


def test_every_format_can_be_named() -> None:
    assert {one.value for one in Format} == set(FORMATS)
