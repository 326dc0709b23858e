from __future__ import annotations

import io
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from short_examples import short_examples

from subvene.runner import Results
from subvene.runner.cli import _tables
from subvene.runner.experiments.look.section import conditions_of, item_of, look_of
from subvene.runner.intervened.model import IntervenedModel

Run = Callable[..., Any]


@pytest.fixture
def no_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the reload, which costs a second Python with torch."""
    monkeypatch.setattr("subvene.runner.experiments.look.run.reload_difference", lambda *args: 0.0)


@pytest.mark.usefixtures("no_fresh_process")
@pytest.mark.parametrize("columns", [80, 120])
def test_the_story_of_a_run(subvene: Run, experiment: Path, tmp_path: Path, columns: int) -> None:
    out = tmp_path / "out"
    result = subvene("run", experiment, "-o", out, env={"COLUMNS": str(columns)})
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    # A path is never broken, and the folder of a test may be deep.
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= columns
    assert "\x1b" not in result.stdout
    text = " ".join(result.stdout.split())
    assert "fitted glad from 2 pairs of texts: mean_difference" in text
    assert "edited 24 tokens in 4 of 6 rows (0 prompt, 4 cursor, 20 response; positions 7 to 15)" in text
    assert lines[-2:] == [f"saved    {out}", "reloaded in a fresh process: logits agree exactly"]
    stored = Results.load(out)
    samples, contrast = look_of(stored).evaluations
    # Each prompt, its answers under their coefficients, in order.
    header = next(line for line in lines if "0 (baseline)" in line)
    assert re.split(r"\s{2,}", header.strip()) == ["-2", "0 (baseline)", "+2"]
    prompts = [stored.questions[key].question for key in samples.keys]
    assert prompts == ["hello world", "tell me about the train"]
    for prompt, key in zip(prompts, samples.keys, strict=True):
        row = lines[lines.index(f"› {prompt}") + 3]
        ends = [header.index("-2"), header.index("0 (b"), header.index("+2"), columns]
        shown = [row[a:b].strip() for a, b in itertools.pairwise(ends)]
        items = [item_of(condition, key) for condition in conditions_of(stored, samples)]
        answers = [str(item.text) for item in items if item is not None]
        assert all(a.startswith(s) for s, a in zip(shown, answers, strict=True))
        assert any(shown)
    for condition in conditions_of(stored, contrast):
        assert f"{condition.metrics['contrast'].mean:.4g}".replace("-", "−") in result.stdout
    assert any(line.strip() == "coefficient" for line in lines)


def test_json_and_the_real_reload(subvene: Run, experiment: Path, tmp_path: Path) -> None:
    result = subvene("run", experiment, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["output"] == str(tmp_path / "out")
    assert Results.of({n: v for n, v in document.items() if n != "output"}) == Results.load(tmp_path / "out")
    section = document["sections"]["look"]
    assert [evaluation["kind"] for evaluation in section["evaluations"]] == ["samples", "contrast"]
    assert section["reload_difference"] <= 1e-5
    assert subvene("show", tmp_path / "out").exit_code == 0


@pytest.mark.parametrize("difference", [2e-5, float("nan")])
def test_an_artifact_that_reloads_otherwise_is_a_failure(
    subvene: Run, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: float
) -> None:
    monkeypatch.setattr("subvene.runner.experiments.look.run.reload_difference", lambda *args: difference)
    result = subvene("run", experiment, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "does not reload as it was saved" in result.stderr


def test_a_spec_that_is_no_experiment(subvene: Run, steer: Path) -> None:
    result = subvene("run", steer)
    assert result.exit_code == 1
    assert "try `subvene generate`" in result.stderr


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_in_the_way_stays(subvene: Run, experiment: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    kept = out / "thesis.tex" if kind == "folder" else out
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("x")
    result = subvene("run", experiment, "-o", out)
    assert result.exit_code == 1
    assert "exists and is no run of a look at an edit; choose another --output" in result.stderr
    assert kept.read_text() == "x"


def test_the_plot_is_plain_text_and_rises_with_its_points() -> None:
    plot = _tables.line_plot([(1, 3.0), (-1, -2.0), (0, 0.5)], width=60)
    lines = plot.splitlines()
    assert {len(line) for line in lines} == {60}
    assert "\x1b" not in plot
    dots = [(line.index("●"), -row) for row, line in enumerate(lines) if "●" in line]
    assert len(dots) == 3
    assert sorted(dots) == sorted(dots, key=lambda dot: dot[1])
    assert "·" in plot  # the line at 0
    assert [line.split() for line in lines if "coefficient" not in line][-1] == ["-1", "0", "1"]


def test_answers_stand_below_each_other_where_columns_would_be_too_narrow() -> None:
    from rich.console import Console

    console = Console(width=60, record=True, file=io.StringIO())
    titles = ["-2", "0 (baseline)", "+1", "+2"]
    _tables.print_side_by_side(console, "hello", titles, ["one", "two", "three\x1b[31m", "four"])
    lines = [line.strip() for line in console.export_text().splitlines()]
    assert lines[:9] == ["› hello", "-2", "one", "0 (baseline)", "two", "+1", "three�[31m", "+2", "four"]


@pytest.mark.long
@pytest.mark.slow
def test_the_quickstart_steers_the_real_model(tmp_path: Path) -> None:
    out = tmp_path / "out"
    spec = short_examples(tmp_path / "examples", 6) / "quickstart.yaml"
    spec.write_text(spec.read_text("utf-8").replace("max_new_tokens: 40", "max_new_tokens: 16"), "utf-8")
    command = [Path(sys.executable).with_name("subvene"), "run", spec, "-o", out]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "80", "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if str(tmp_path) not in line) <= 80
    assert done.stdout.rstrip().endswith("logits agree exactly") or "max |Δ logit| = " in done.stdout
    stored = Results.load(out)
    section = look_of(stored)
    assert section.reload_difference is not None
    assert section.reload_difference <= 1e-5
    samples, contrast = section.evaluations
    means = [condition.metrics["contrast"].mean for condition in conditions_of(stored, contrast)]
    assert contrast.coefficients == (-2, -1, 0, 1, 2)
    assert means == sorted(means)
    assert means[-1] - means[0] > 10
    for key in samples.keys:
        items = [item_of(condition, key) for condition in conditions_of(stored, samples)]
        assert len({item.text for item in items if item is not None}) == 3
    receipt: Any
    (receipt,) = samples.receipt
    assert receipt["changed"] == sum(receipt["edited"].values()) > 0
    assert (receipt["rows"], receipt["rows_edited"]) == (9, 6)


@pytest.mark.parametrize(
    "command",
    [
        ("run", "{spec}"),
        ("fit", "{spec}"),
        ("import", "{vector}", "--model", "{model}", "--layer", "1"),
        ("export", "{artifact}", "--to", "checkpoint"),
        ("set", "{artifact}", "layer=0"),
    ],
    ids=lambda command: command[0],
)
def test_an_output_that_cannot_be_written_is_one_line_before_the_work(
    subvene: Run,
    experiment: Path,
    steer: Path,
    model_folder: Path,
    tmp_path: Path,
    command: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    places = {
        "spec": experiment,
        "vector": tmp_path / "v.pt",
        "model": model_folder,
        "artifact": tmp_path / "a",
    }
    torch.save(torch.ones(4, 32), tmp_path / "v.pt")
    IntervenedModel.from_spec(steer).save_pretrained(tmp_path / "a")
    monkeypatch.setattr(
        "subvene.runner.models.loading.load_weights", lambda *a, **k: pytest.fail("it was loaded")
    )
    done = subvene(*(part.format(**places) for part in command), "-o", tmp_path / "file" / "out")
    assert done.exit_code == 1
    said = done.stderr.replace("\n", "")
    assert re.search(r"file/out(/manifest\.json)?: cannot be written: Not a directory", said)
