"""`subvene export`: every format from the command line, refusals, and what is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from subvene.runner.exchange.exports import FORMATS

EVERYWHERE = """\
interventions:
- kind: steering
  name: glad
  layer: 1
  vector: {file: t.safetensors, key: v}
  coefficient: 3
"""
EDIT = """\
interventions:
- {kind: low_rank_edit, name: edit, layer: 1, seed: 3}
"""


@pytest.mark.parametrize("to", [name for name in FORMATS if name != "peft"])
def test_steering_goes_into_every_format_but_a_lora(
    to: str, subvene: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = subvene("export", write(EVERYWHERE), "--to", to, "-o", out)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"saved    {out}  {FORMATS[to]}\n")
    assert "measured max |Δ logit| = " in done.stdout
    assert "4 texts" in done.stdout
    record = json.loads((out / "equivalence.json").read_text())
    assert record["max_logit_difference"] < 1e-4 < record["max_logit_effect"]


def test_json_is_the_record(subvene: Callable[..., Any], write: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subvene("export", write(EDIT), "--to", "peft", "-o", out, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("output") == str(out)
    assert found == json.loads((out / "equivalence.json").read_text())
    assert found["format"] == "peft"


def test_a_refusal_names_the_way_out(
    subvene: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    late = write(EVERYWHERE + "  positions: response\n")
    out = tmp_path / "out"
    done = subvene("export", late, "--to", "checkpoint", "-o", out)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "glad (steering): positions" in done.stderr
    assert "With --approximate" in done.stderr
    assert not out.exists()
    done = subvene("export", late, "--to", "checkpoint", "-o", out, "--approximate")
    assert done.exit_code == 0, done.stderr
    assert "approximate: mean KL " in done.stdout
    assert 'glad (steering): positions "response"' in done.stdout
    assert (out / "model.safetensors").is_file()
    done = subvene("export", late, "--to", "peft", "-o", out, "--approximate")
    assert done.exit_code == 1
    assert "instead, the format checkpoint" in done.stderr


def test_bad_input(subvene: Callable[..., Any], write: Callable[..., Path], tmp_path: Path) -> None:
    spec = write(EVERYWHERE)
    done = subvene("export", spec, "--to", "onnx", "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "gguf-control-vector" in done.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    done = subvene("export", spec, "--to", "vector", "-o", tmp_path / "mine")
    assert done.exit_code == 1
    assert "holds no export" in done.stderr
    assert subvene("export", tmp_path / "nothing", "--to", "vector", "-o", tmp_path / "out").exit_code == 1


def test_help_lists_every_format(subvene: Callable[..., Any]) -> None:
    told = subvene("export", "--help", env={"COLUMNS": "200"}).stdout
    words = " ".join(told.replace("│", " ").split())
    for name, what in FORMATS.items():
        assert f"{name}: {what.split()[0]}" in words
