"""On a model whose mechanism is known, the search finds it, and the controls tell an illusion from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from known_mechanism import direction, known_rows, write_known_model

from subvene.runner import IntervenedModel, run_experiment
from subvene.runner.experiments.interchange.section import SECTION, Grid, InterchangeSection, interchange_of
from subvene.runner.experiments.results import Results
from subvene.runner.reports.interchange import notes

SPEC = """\
subvene: 1
model: {name: model, dtype: float32}
sources: {other: {column: source, chat: false}}
fit:
  recipe: das
  key: das
  data: {file: rows.jsonl}
  split: {by: [name, other], test: 0.4}
  layers: [0, 1]
  positions:
    name: {base: {field: name}, source: {field: other}}
    verb: {base: {field: verb}, source: {field: second}}
    last: {last: 1}
  learning_rate: 0.05
  epochs: 5
interventions:
- kind: pyvene
  name: das
  class: LowRankRotatedSpaceIntervention
  low_rank_dimension: 1
  site: block_output
  layer: 0
  positions: {field: name}
  source: {from: other, positions: {field: other}}
  state: {key: "das.block_output[0].name"}
evaluate: [{kind: interchange, resamples: 500}]
"""


class Run:
    """A run in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_known_model(folder / "model")
        self.rows = known_rows(telling=True)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        (folder / "exp.yaml").write_text(SPEC.replace("model, dtype", f"{folder / 'model'}, dtype"))
        self.results = self.again()[0]

    def again(self) -> tuple[Results, list[bool]]:
        done: list[bool] = []

        def step(what: str, value: object) -> None:
            if what == "unit" and isinstance(value, dict):
                done.append(bool(value["was_done"]))

        found = run_experiment(self.folder / "exp.yaml", output=self.folder / "run", on_step=step)
        return found.results, done

    @property
    def grid(self) -> Grid:
        return interchange_of(self.results).grids[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("known")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBVENE_CACHE", str(folder / "cache"))
        yield Run(folder)


def test_the_mechanism_is_found_where_it_is(run: Run) -> None:
    found = {
        (cell.place, cell.layer): {arm: value.mean for arm, value in cell.iia.items()}
        for cell in run.grid.cells
    }
    for cell in (("name", 0), ("last", 1)):
        assert found[cell]["das"] >= 0.95
        assert found[cell]["whole"] >= 0.95
        assert found[cell]["random"] <= 0.1
        assert 0.2 <= found[cell]["shuffled"] <= 0.75  # of two answers
    for cell in (("last", 0), ("name", 1), ("verb", 1)):
        assert found[cell]["das"] == found[cell]["whole"] == 0
    assert run.grid.untouched.mean == 0
    # The name's state still tells at layer 1, where nobody looks any more.
    assert run.grid.cell(1, "name").probe.mean == 1
    assert run.grid.cell(0, "last").measured.equal == 1


def test_the_direction_is_the_one_that_decides(run: Run) -> None:
    tensors = safetensors.torch.load_file(run.folder / "run" / "artifact" / "tensors.safetensors")
    rotation = tensors["das.block_output[0].name.rotation"]
    assert rotation.shape == (32, 1)
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(1))
    assert abs(float(rotation[:, 0] @ direction())) > 0.85


def test_a_subspace_that_wakes_a_dormant_path_is_told_from_it(run: Run) -> None:
    """The verb tells the answers apart and is not used; the direction is, and is the same in all verbs."""
    cell = run.grid.cell(0, "verb")
    assert cell.iia["das"].mean >= 0.9
    assert cell.iia["whole"].mean == 0
    assert cell.exceeds_whole
    assert not run.grid.cell(0, "name").exceeds_whole
    page = (run.folder / "run" / "report.html").read_text("utf-8")
    table = (run.folder / "run" / "tables" / "results.md").read_text("utf-8")
    assert "dormant" in page
    assert "Makelov" in table
    assert [line.split(" | ")[:2] for line in table.splitlines() if "†" in line and "|" in line[:2]] == [
        ["| verb", "0"]
    ] * 2


def test_a_subspace_that_any_source_moves_alike_is_named(run: Run) -> None:
    grid = run.grid
    assert not any("other rows do as well" in note for note in notes(run.results))
    over = dict(grid.cell(0, "verb").over)
    over["shuffled"] = over["shuffled"].model_copy(update={"mean": 0.1, "low": -0.1, "high": 0.3})
    cells = [cell.model_copy(update={"over": over}) if cell.exceeds_whole else cell for cell in grid.cells]
    section = InterchangeSection(grids=(grid.model_copy(update={"cells": tuple(cells)}),))
    sections = {SECTION: section.model_dump(mode="json")}
    said = notes(run.results.model_copy(update={"sections": sections}))
    assert any("sources of other rows do as well at verb at layer 0," in note for note in said)


def test_no_name_is_on_both_sides(run: Run) -> None:
    held_out = set(run.results.fits[0].provenance["held_out_values"])
    assert held_out
    texts = {key: text.question for key, text in run.results.questions.items()}
    assert len(texts) == len(run.grid.rows) > 10
    for text in texts.values():
        base, source = text.split(" ← ")
        assert {base.split()[0], source.split()[0]} <= held_out


def test_the_artifact_does_what_its_cell_did(run: Run) -> None:
    m = IntervenedModel.from_pretrained(run.folder / "run" / "artifact")
    by_key = {text.question: key for key, text in run.results.questions.items()}
    rows = [row for row in run.rows if f"{row['base']} ← {row['source']}" in by_key]
    ids = [m.tokenizer(row["base"])["input_ids"] for row in rows]
    with torch.no_grad():
        logits = m(torch.tensor(ids), prompt_lengths=[3] * len(ids), rows=rows).logits[:, -1]
    answers = m.tokenizer.convert_tokens_to_ids(["he", "she"])
    best = ["he" if left > right else "she" for left, right in logits[:, answers].tolist()]
    right = dict(zip(run.grid.rows, run.grid.cell(0, "name").measured.right["das"], strict=True))
    for row, found in zip(rows, best, strict=True):
        assert (found == row["label"]) == bool(right[by_key[f"{row['base']} ← {row['source']}"]])
    assert run.results.conditions[0].artifact == "artifact"


def test_what_is_done_is_not_done_again(run: Run) -> None:
    again, done = run.again()
    assert done == [True, True]
    assert again.sections == run.results.sections
