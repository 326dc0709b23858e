"""Looks: what is done again, several evaluations of a kind, and points that are not finite."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from subvene.interventions import TensorError
from subvene.runner import IntervenedModel, Results, run_experiment
from subvene.runner.experiments.look import run as module
from subvene.runner.experiments.look.section import conditions_of, item_of, look_of, standard_error
from subvene.runner.measures.contrast import run_contrast
from subvene.runner.measures.samples import run_samples
from subvene.runner.reports.publish import card_table
from subvene.specs import ContrastSpec, SamplesSpec, SubveneError

pytestmark = pytest.mark.usefixtures("_no_fresh_process")
STEER = (
    "- {kind: steering, name: glad, layer: 1, vector: {file: t.safetensors, key: v}, coefficient: 3, "
    "positions: response}\n"
)
PAIRS = """\
texts:
- {prompt: how is the day, positive: happy and good, negative: gloomy and bad}
- {prompt: hello, system: be good, positive: i am glad, negative: i am sad}
"""
PAIRS_IN_LINE = "{texts: [{prompt: hello, positive: glad, negative: sad}]}"
SEVERAL = (
    f"interventions:\n{STEER}"
    """evaluate:
- {kind: contrast, coefficients: [0, 3], pairs: {file: pairs.yaml}}
- {kind: samples, coefficients: [3, -1], prompts: [hello, the train], max_new_tokens: 4}
- {kind: contrast, coefficients: [3], pairs: {texts: [{prompt: hello, positive: glad, negative: sad}]}}
- {kind: samples, coefficients: [3], prompts: [hello], max_new_tokens: 6}
"""
)


@pytest.fixture
def _no_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the reload, which costs a second Python with torch."""
    monkeypatch.setattr(module, "reload_difference", lambda *args: 0.0)


@pytest.fixture
def several(write: Callable[..., Path], tmp_path: Path) -> Path:
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    return write(SEVERAL, "several.yaml")


def units(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "units.jsonl").read_text().splitlines()]


def test_only_what_changed_is_done_again(experiment: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run_experiment(experiment, output=output)
    first = units(output)
    assert [unit["unit"]["unit"] for unit in first] == ["fit", "samples", "contrast"]
    text = experiment.read_text()

    def new_after(changed: str) -> list[str]:
        before = len(units(output))
        experiment.write_text(changed)
        run_experiment(experiment, output=output)
        return [unit["unit"]["unit"] for unit in units(output)[before:]]

    assert new_after(text) == []
    assert new_after(text.replace("max_new_tokens: 6", "max_new_tokens: 5")) == ["samples"]
    assert new_after(text.replace("i am glad", "i am happy")) == ["contrast"]
    # Receipts say what an intervention is called, so its name is part of what was measured.
    assert new_after(text.replace("name: glad", "name: joy")) == ["samples", "contrast"]
    assert new_after(text.replace("layer: 1", "layer: 2")) == ["samples", "contrast"]
    assert new_after(text.replace("i am very happy", "i am happy")) == ["fit", "samples", "contrast"]
    assert new_after(text + "seed: 3\n") == ["fit", "samples", "contrast"]
    assert new_after(text) == []


def test_a_file_of_pairs_that_has_changed_is_measured_again(several: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    first = run_experiment(several, output=output).results
    done = len(units(output))
    (tmp_path / "pairs.yaml").write_text(PAIRS.replace("i am glad", "i am happy"))
    again = run_experiment(several, output=output).results
    assert [unit["unit"]["unit"] for unit in units(output)[done:]] == ["contrast"]
    assert first != again


def test_each_evaluation_has_its_own_numbers_and_texts(several: Path, tmp_path: Path) -> None:
    results = run_experiment(several, output=tmp_path / "run").results
    m = IntervenedModel.from_spec(several)
    declared = m.spec.evaluate  # type: ignore[attr-defined]
    evaluations = look_of(results).evaluations
    assert [e.name for e in evaluations] == ["contrast", "samples", "contrast_2", "samples_2"]
    assert [condition.label for condition in results.conditions] == ["-1", "0 (baseline)", "+3"]
    assert [condition.point for condition in results.conditions] == [
        {"glad.coefficient": c} for c in (-1.0, 0.0, 3.0)
    ]
    keys = {unit["key"] for unit in units(tmp_path / "run")}
    assert {key for condition in results.conditions for key in condition.units.values()} == keys
    for evaluation, spec in zip(evaluations, declared, strict=True):
        conditions = list(conditions_of(results, evaluation))
        if isinstance(spec, ContrastSpec):
            alone = run_contrast(m, spec, tmp_path)
            for condition, record, row in zip(conditions, alone["records"], alone["pairs"], strict=True):
                metric = condition.metrics[evaluation.name]
                assert (metric.mean, metric.n) == (record["mean_difference"], len(row))
                assert standard_error(metric) == record["standard_error"]
                assert condition.value(evaluation.preferred) == record["positive_preferred"]
                items = [item_of(condition, key) for key in evaluation.keys]
                assert [item.scores[evaluation.name] for item in items if item is not None] == row
            assert evaluation.tokens_edited == alone["tokens_edited"]
        elif isinstance(spec, SamplesSpec):
            alone = run_samples(m, spec, tmp_path)
            written = {
                (results.questions[key].question, c): item.text
                for key in evaluation.keys
                for c, condition in zip(evaluation.coefficients, conditions, strict=True)
                if (item := item_of(condition, key)) is not None
            }
            assert written == {(r["prompt"], r["coefficient"]): r["response"] for r in alone["records"]}
            assert list(evaluation.receipt) == json.loads(json.dumps(alone["receipt"]))


def test_the_artifact_is_the_condition_of_its_own_strength(several: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    results = run_experiment(several, output=output).results
    kept = {condition.label: condition.artifact for condition in results.conditions}
    assert kept == {"-1": None, "0 (baseline)": None, "+3": "artifact"}
    card = (output / "artifact" / "README.md").read_text()
    table = card_table(results, "artifact")
    assert table.strip() in card
    three = results.conditions[2].metrics
    assert f"This folder is **+3** of the run below: contrast {three['contrast'].mean:.4g}" in card
    assert "**contrast 2: 1 pair**" in card
    assert IntervenedModel.from_pretrained(output / "artifact").spec.interventions[0].strength == 3


def test_a_point_that_is_not_finite_is_marked_and_the_others_go_on(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    text = SEVERAL.replace("[0, 3], pairs: {file: pairs.yaml}", f"[0, 1.0e+30], pairs: {PAIRS_IN_LINE}")
    output = tmp_path / "run"
    results = run_experiment(write(text.replace("[3, -1]", "[1.0e+30, 3]")), output=output).results
    zero, three, marked = results.conditions
    assert (zero.not_finite, three.not_finite) == (None, None)
    assert "'glad' at block_output[1]" in (marked.not_finite or "")
    assert marked.metrics == {}
    assert {item.text for item in marked.items} == {None}
    assert "NaN" not in (output / "results.json").read_text()
    assert "| 1e+30 | not finite | – | – |" in (output / "tables" / "results.md").read_text()
    for name in ("results.csv", "samples.csv"):
        assert "'glad' at block_output[1]" in (output / "tables" / name).read_text()
    assert "not finite" in (output / "report.html").read_text()


def test_a_fit_alone_has_an_artifact_and_a_page(experiment: Path, tmp_path: Path) -> None:
    experiment.write_text(experiment.read_text().partition("evaluate:")[0])
    results = run_experiment(experiment, output=tmp_path / "run").results
    assert results.conditions == ()
    assert look_of(results).reload_difference == 0.0
    assert not list((tmp_path / "run" / "tables").iterdir())
    assert "Nothing that was measured" in (tmp_path / "run" / "artifact" / "README.md").read_text()
    assert "What the fit found" in (tmp_path / "run" / "report.html").read_text()


def test_a_folder_of_an_older_version_is_left_alone(experiment: Path, tmp_path: Path) -> None:
    """It has results and an artifact, and neither manifest nor units: nothing of it can be taken up."""
    output = tmp_path / "run"
    output.mkdir()
    old = {"evaluations": [], "provenance": {}, "reload_max_logit_difference": 0.0}
    (output / "results.json").write_text(json.dumps(old))
    with pytest.raises(SubveneError, match="is no run of a look at an edit; choose another --output"):
        run_experiment(experiment, output=output)
    assert [path.name for path in output.iterdir()] == ["results.json"]
    assert Results.load(output).kind == "look"


def test_a_tensor_file_that_is_not_there_is_named_before_the_model_is_loaded(
    several: Path, tmp_path: Path
) -> None:
    (tmp_path / "t.safetensors").unlink()
    with pytest.raises(TensorError, match=r"t\.safetensors: no such tensor file"):
        run_experiment(several, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
