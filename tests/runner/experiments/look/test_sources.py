"""A look at an intervention that reads from a source: columns, samples, receipts, the artifact."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from subvene.runner import run_experiment
from subvene.runner.edits.receipt import NotSteeredError

LINES = """\
sources:
  other: {column: other}
interventions:
- kind: pyvene
  name: swap
  class: VanillaIntervention
  site: block_output
  layer: 1
  source: {from: other, positions: {last_of: {field: what}}}
  positions: {last: 1}
evaluate:
- kind: samples
  coefficients: [0, 1]
  prompts: [tell me about the day, tell me about the day]
  columns: {other: [i am sad, a train], what: [sad, train]}
  max_new_tokens: 4
"""


def test_columns_reach_sources_positions_and_the_reloaded_artifact(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    found = run_experiment(write(LINES, "sources.yaml"), output=output).results
    untouched, swapped = found.conditions
    assert len(untouched.items) == len(swapped.items) == 2
    assert untouched.items[0].text == untouched.items[1].text
    assert swapped.items[0].text != swapped.items[1].text
    assert "other: i am sad" in found.questions[swapped.items[0].key].question
    (receipt,) = found.sections["look"]["evaluations"][0]["receipt"]
    assert receipt["source"]["name"] == "other"
    assert (receipt["source"]["rows_fed"], receipt["source"]["rows_equal"]) == (2, 0)
    assert found.sections["look"]["reload_difference"] == 0
    page = (output / "report.html").read_text()
    assert "What was read of each source" in page
    distance = receipt["source"]["mean_distance"]
    cells = ["other", "block_output[1]", "4 in 4 rows", f"{distance:.3f}", "0 of 2"]
    assert all(f">{cell}</td>" in page for cell in cells)
    assert json.loads((output / "results.json").read_text())["sections"]["look"]


def test_a_source_equal_to_the_base_fails_the_run(write: Callable[..., Path], tmp_path: Path) -> None:
    same = LINES.replace("[i am sad, a train]", "[tell me about the day, tell me about the day]")
    same = same.replace(", positions: {last_of: {field: what}}}", "}")
    with pytest.raises(NotSteeredError, match="equal to the base in each of the 2 rows"):
        run_experiment(write(same, "same.yaml"), output=tmp_path / "run")
