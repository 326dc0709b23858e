"""The commands around a comparison, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner

from subvene.runner import IntervenedModel, Results
from subvene.runner.cli.app import app


def small(comparison: Path) -> Path:
    """The comparison with one seed and without the conditions that take long."""
    text = comparison.read_text().replace("seeds: [1, 2]", "seeds: [1]")
    comparison.write_text("".join(line for line in text.splitlines(True) if "best" not in line))
    return comparison


def test_run_tells_every_unit_and_prints_the_table(comparison: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    result = CliRunner().invoke(app, ["run", str(small(comparison)), "-o", str(output)])
    assert result.exit_code == 0, result.output
    assert "[24/24] iti seed 1 fold 1: divergence" in result.stderr
    assert "min left" in result.stderr or "s left" in result.stderr
    for word in ("baseline", "iti", "MC1", "KL", "judge reference", "report.html", "artifacts"):
        assert word in result.stdout
    again = CliRunner().invoke(app, ["run", str(comparison), "-o", str(output)])
    assert again.stderr.count("(done before)") == 24
    assert again.stdout == result.stdout


def test_run_with_json_prints_the_results_alone(comparison: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    result = CliRunner().invoke(app, ["run", str(small(comparison)), "-o", str(output), "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed.pop("output") == str(output)
    assert printed == json.loads((output / "results.json").read_text())
    assert Results.of(printed) == Results.load(output)


def test_fit_shows_the_heads_and_export_bakes_them(comparison: Path, tmp_path: Path) -> None:
    small(comparison).write_text(comparison.read_text().replace("positions: response", "positions: all"))
    artifact, baked = tmp_path / "fitted", tmp_path / "baked"
    result = CliRunner().invoke(app, ["fit", str(comparison), "-o", str(artifact)])
    assert result.exit_code == 0, result.output
    m = IntervenedModel.from_pretrained(artifact)
    assert "3 heads" in result.stdout
    for layer, heads in m.provenance["heads"].items():
        for head in heads:
            accuracy = m.provenance["validation_accuracy"][int(layer)][head]
            assert f"{head}: {accuracy:.1%}" in result.stdout
    assert "validation_accuracy" not in (artifact / "README.md").read_text()

    result = CliRunner().invoke(app, ["export", str(artifact), "--to", "checkpoint", "-o", str(baked)])
    assert result.exit_code == 0, result.output
    plain = transformers.AutoModelForCausalLM.from_pretrained(baked, dtype=torch.float32)
    ids = torch.tensor([[5, 9, 12, 7]])
    torch.testing.assert_close(plain(ids).logits, m(ids).logits, atol=1e-5, rtol=0)


def test_export_of_what_no_checkpoint_can_be_is_refused(comparison: Path, tmp_path: Path) -> None:
    artifact, baked = tmp_path / "fitted", tmp_path / "baked"
    assert CliRunner().invoke(app, ["fit", str(small(comparison)), "-o", str(artifact)]).exit_code == 0
    result = CliRunner().invoke(app, ["export", str(artifact), "--to", "checkpoint", "-o", str(baked)])
    assert result.exit_code == 1
    assert "positions" in result.stderr
    assert not baked.exists()


@pytest.mark.parametrize("name", ["export", "judge", "run"])
def test_help_is_there(name: str) -> None:
    assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0
