"""Comparisons end to end: what is measured, what is done again, and what a kill costs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from subvene.runner import IntervenedModel, Results, run_experiment
from subvene.runner.data.truthfulqa.questions import load_questions
from subvene.runner.data.truthfulqa.splits import fold_of, validation_keys
from subvene.runner.exchange.exports.checkpoint import save_baked
from subvene.runner.experiments.comparison import arms
from subvene.runner.experiments.results import Condition
from subvene.runner.experiments.rows import METRICS, rows
from subvene.runner.files.ledger import LedgerWarning
from subvene.runner.models.identity import AlteredWarning
from subvene.runner.reports.documents import in_markdown
from subvene.runner.reports.publish import card_table
from subvene.runner.reports.tables import document
from subvene.specs import QuestionsSpec, SubveneError


def run(path: Path, output: Path, **kwargs: Any) -> Results:
    return run_experiment(path, output=output, **kwargs).results


def units(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "units.jsonl").read_text().splitlines()]


def cell(results: Results, condition: str, seed: int = 1, fold: int = 0) -> Condition:
    (found,) = (c for c in results.conditions if (c.name, c.seed, c.fold) == (condition, seed, fold))
    return found


def by_question(found: Condition) -> dict[str, Any]:
    return {item.key: item for item in found.items if "ce" not in item.scores}


@pytest.fixture(scope="module")
def done(request: pytest.FixtureRequest) -> Any:
    """Filled by the first test that asks: the results and the folder of one whole run."""
    return {}


@pytest.fixture
def whole(done: dict[str, Any], comparison: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not done:
        output = tmp_path_factory.mktemp("whole") / "run"
        done.update(output=output, results=run(comparison, output), path=comparison)
    return done


def test_every_condition_seed_and_fold_is_measured(whole: dict[str, Any]) -> None:
    results = whole["results"]
    assert [row.label for row in rows(results.conditions)] == [
        "baseline",
        "off",
        "iti",
        "best",
        "everywhere",
        "baked",
    ]
    assert len(results.conditions) == 6 * 2 * 2
    for c in results.conditions:
        assert {"mc1", "mc2", "mc3", "ce", "kl"} <= c.metrics.keys()
        # Of answers that are all empty the judge says nothing, and then there is no number.
        verdicts = c.counts["questions"] - c.counts["true_without_verdict"]
        assert ("true" in c.metrics) == (verdicts > 0)
        assert verdicts == 0 or c.metrics["true"].n == verdicts
    assert any("true" in c.metrics for c in results.conditions)
    for c in results.conditions:
        assert c.counts["questions_seen_in_fit"] == 0
        asked = [item for item in c.items if "mc1" in item.scores]
        assert c.metrics["mc1"].n == c.counts["questions"] == len(asked)
    folds = [by_question(cell(results, "iti", 1, fold)).keys() for fold in (0, 1)]
    assert not folds[0] & folds[1]
    assert len(folds[0] | folds[1]) == 12


def test_rows_are_means_and_deviations_of_cells(whole: dict[str, Any]) -> None:
    results = whole["results"]
    for row in rows(results.conditions):
        cells = [c for c in results.conditions if c.label == row.label]
        for name in METRICS:
            if name not in row.metrics:
                continue
            known = [c for c in cells if name in c.metrics]
            values = [c.metrics[name].mean for c in known]
            # What a judge says is weighed by its verdicts.
            weights = [c.counts["questions"] - c.counts.get(f"{name}_without_verdict", 0) for c in known]
            mean = sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
            if name == "true_info":  # of the pooled means, as its interval is
                mean = row.metrics["true"].mean * row.metrics["info"].mean
            assert row.metrics[name].mean == pytest.approx(mean)
            assert row.metrics[name].sd == pytest.approx(statistics.stdev(values))
            assert row.metrics[name].n == len(known)


def test_points_are_tried_with_directions_that_have_not_seen_what_they_are_chosen_by(
    whole: dict[str, Any],
) -> None:
    questions = load_questions(QuestionsSpec(file="questions.csv"), whole["path"].parent)
    made = {
        (about["seed"], about["tuning_keys_sha256"], about["select"]["k"])
        for path in (whole["output"] / "fits").glob("*/provenance.json")
        for about in [json.loads(path.read_text())]
    }
    for choice in whole["results"].choices:
        tuning = {q.key for q in questions if fold_of(q, 2) != choice.fold}
        unseen = validation_keys([q for q in questions if q.key in tuning], 0.34, choice.seed)
        assert [tried.n for tried in choice.tried] == [len(unseen)] * 4
        every, seen = (
            hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest() for keys in (tuning, tuning - unseen)
        )
        assert {k for seed, keys, k in made if (seed, keys) == (choice.seed, seen)} == {2, 4}
        # On all of them only `iti`, which chooses nothing, and the point that was chosen are fitted.
        assert {k for seed, keys, k in made if (seed, keys) == (choice.seed, every)} == {
            3,
            choice.chosen["fit.select.k"],
        }


def test_strength_zero_is_the_baseline_and_has_no_divergence(whole: dict[str, Any]) -> None:
    results = whole["results"]
    for seed in (1, 2):
        for fold in (0, 1):
            base, off = (cell(results, name, seed, fold) for name in ("baseline", "off"))
            assert off.items == base.items
            assert off.metrics == base.metrics
            assert base.value("kl") == pytest.approx(0, abs=1e-7)


def test_the_edit_does_something_and_its_receipt_says_so(whole: dict[str, Any]) -> None:
    found, base = (cell(whole["results"], name) for name in ("iti", "baseline"))
    assert found.metrics["kl"].mean > 1e-4
    assert found.items != base.items
    for measurement in ("multiple_choice", "generation", "divergence"):
        receipt: Any
        (receipt,) = found.receipts[measurement]
        assert receipt["name"] == "iti"
        assert sum(receipt["edited"].values()) > 0
        assert receipt["changed"] > 0
    # The cursor and what follows: of the prompt nothing else is edited.
    (receipt,) = found.receipts["generation"]
    assert receipt["edited"]["prompt"] == 0
    assert base.receipts["generation"] == []


def test_a_baked_checkpoint_measures_as_the_edit_at_all_positions(whole: dict[str, Any]) -> None:
    for seed in (1, 2):
        for fold in (0, 1):
            everywhere, baked = (cell(whole["results"], n, seed, fold) for n in ("everywhere", "baked"))
            for name in ("mc1", "mc2", "mc3", "true", "ce", "kl"):
                assert baked.value(name) == pytest.approx(everywhere.value(name), abs=1e-5)
            assert baked.metrics["kl"].mean > 1e-5


def test_the_chosen_point_is_the_best_on_validation(whole: dict[str, Any]) -> None:
    results = whole["results"]
    places = [(choice.seed, choice.fold) for choice in results.choices]
    assert places == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for choice, (seed, fold) in zip(results.choices, [(1, 0), (1, 1), (2, 0), (2, 1)], strict=True):
        assert (choice.condition, choice.metric, len(choice.tried)) == ("best", "mc2", 4)
        best = max(tried.value for tried in choice.tried if tried.value is not None)
        assert next(tried.point for tried in choice.tried if tried.value == best) == choice.chosen
        assert cell(results, "best", seed, fold).point == choice.chosen


def test_the_artifact_of_a_cell_loads_and_holds_that_edit(whole: dict[str, Any], model_folder: Path) -> None:
    fitted = next(f for f in whole["results"].fits if f.condition == "best")
    m = IntervenedModel.from_pretrained(whole["output"] / str(fitted.artifact))
    assert m.spec.interventions[0].strength == fitted.point["iti.strength"]
    heads = sum(int(t.abs().sum(1).gt(0).sum()) for n, t in m.tensors.items() if n.endswith("]"))
    assert heads == fitted.point["fit.select.k"]


def test_the_card_of_a_cell_has_its_own_numbers(whole: dict[str, Any]) -> None:
    results = whole["results"]
    kept = [one for one in results.conditions if one.artifact is not None]
    assert {fitted.artifact for fitted in results.fits} <= {one.artifact for one in kept}
    one = next(one for one in kept if one.name == "best")
    own, _, table = card_table(results, one.artifact).partition("\n\n")
    assert own.startswith(f"This folder is **{one.label} (seed {one.seed}, fold {one.fold})**")
    assert f"MC2 {one.metrics['mc2'].mean:.4g}" in own
    assert table.strip() == in_markdown(document(results)).strip()
    for one in kept:
        artifact = whole["output"] / str(one.artifact)
        assert (artifact / "intervention.yaml").is_file()
        card = (artifact / "README.md").read_text()
        assert card_table(results, one.artifact).strip() in card


def test_the_files_that_are_promised_are_there(whole: dict[str, Any]) -> None:
    output = whole["output"]
    names = ("manifest.json", "units.jsonl", "results.json", "report.html", "experiment.yaml")
    for name in (*names, *(f"tables/{t}" for t in ("results.md", "results.csv", "cells.csv", "answers.csv"))):
        assert (output / name).stat().st_size > 0, name
    assert Results.load(output) == whole["results"]
    assert not list(output.glob(".baked*"))


def test_running_again_does_nothing_and_says_the_same(whole: dict[str, Any]) -> None:
    before, output = units(whole["output"]), whole["output"]
    tables = {p.name: p.read_bytes() for p in (output / "tables").iterdir()}
    steps: list[tuple[str, Any]] = []
    again = run(whole["path"], output, on_step=lambda what, value: steps.append((what, value)))
    assert units(output) == before
    assert all(value["was_done"] for what, value in steps if what == "unit")
    assert {p.name: p.read_bytes() for p in (output / "tables").iterdir()} == tables
    assert again.conditions == whole["results"].conditions
    assert again.fits == whole["results"].fits


def test_as_many_units_are_told_as_were_planned(
    comparison: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, Any]] = []
    written: list[Path] = []

    def save(m: IntervenedModel, folder: Path) -> Path:
        written.append(folder)
        return save_baked(m, folder)

    monkeypatch.setattr(arms, "save_baked", save)
    comparison.write_text(comparison.read_text().replace("seeds: [1, 2]", "seeds: [1]"))
    run(comparison, tmp_path / "run", on_step=lambda what, value: steps.append((what, value)))
    (planned,) = (value for what, value in steps if what == "planned")
    assert sum(what == "unit" for what, _ in steps) == planned
    # Once a fold, whatever is measured of it.
    assert len(written) == 2


def test_only_what_changed_is_done_again(comparison: Path, tmp_path: Path) -> None:
    text = comparison.read_text().replace("seeds: [1, 2]", "seeds: [1]").replace("folds: 2\n", "")
    for name in ("best", "everywhere", "baked"):
        text = "".join(line for line in text.splitlines(True) if f"name: {name}," not in line)
    output = tmp_path / "run"
    comparison.write_text(text)
    run(comparison, output)
    first = units(output)

    comparison.write_text(text.replace("strength: 3", "strength: 4"))
    run(comparison, output)
    new = units(output)[len(first) :]
    assert sorted(u["unit"]["unit"] for u in new) == [
        "divergence",
        "generation",
        "judgement",
        "multiple_choice",
    ]

    comparison.write_text(text.replace("kind: reference", "kind: reference, metric: bleu"))
    run(comparison, output)
    newer = units(output)[len(first) + len(new) :]
    assert {u["unit"]["unit"] for u in newer} == {"judgement", "judgement of nulls"}


def _with_model(path: Path, **fields: Any) -> None:
    text = path.read_text()
    path.write_text(text.replace("dtype: float32", f"dtype: float32, {json.dumps(fields)[1:-1]}", 1))


def _template(path: Path, folder: Path) -> None:
    (file,) = folder.glob("*.jinja")
    file.write_text(file.read_text() + " ")


READINGS: dict[str, Callable[[Path, Path], None]] = {
    "chat_template_kwargs": lambda path, _: _with_model(
        path, chat_template_kwargs={"enable_thinking": False}
    ),
    "system": lambda path, _: _with_model(path, system="fold"),
    "reasoning": lambda path, _: _with_model(path, reasoning="keep"),
    "template": _template,
}


def test_a_run_that_reads_conversations_otherwise_is_done_again(
    comparison: Path, tmp_path: Path, model_folder: Path
) -> None:
    """Every unit for which the model reads text; and none where nothing changed."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    text = comparison.read_text().replace("seeds: [1, 2]", "seeds: [1]").replace("folds: 2\n", "")
    for name in ("off", "best", "everywhere", "baked"):
        text = "".join(line for line in text.splitlines(True) if f"name: {name}," not in line)
    comparison.write_text(text.replace(str(model_folder), str(folder)))
    output = tmp_path / "run"

    def done_now() -> list[str]:
        before = len(units(output)) if output.exists() else 0
        run(comparison, output)
        return sorted(unit["unit"]["unit"] for unit in units(output)[before:])

    first = done_now()
    assert {"multiple_choice", "generation", "divergence", "judgement"} <= set(first)
    assert done_now() == []
    for name, change in READINGS.items():
        change(comparison, folder)
        again = done_now()
        assert again == [unit for unit in first if unit in set(again)], name
        assert set(first) - set(again) <= {"judgement", "judgement of nulls"}, name
        assert done_now() == [], name


def test_without_folds_the_tables_say_that_the_fit_saw_the_questions(
    comparison: Path, tmp_path: Path
) -> None:
    text = comparison.read_text().replace("seeds: [1, 2]", "seeds: [1]").replace("folds: 2\n", "")
    comparison.write_text("".join(line for line in text.splitlines(True) if "best" not in line))
    results = run(comparison, tmp_path / "run")
    assert cell(results, "iti").counts["questions_seen_in_fit"] == 12
    assert cell(results, "baseline").counts["questions_seen_in_fit"] == 0
    assert "WARNING: " in (tmp_path / "run" / "tables" / "results.md").read_text()


def test_results_and_tensors_that_were_swapped_are_made_again(comparison: Path, tmp_path: Path) -> None:
    text = comparison.read_text().replace("seeds: [1, 2]", "seeds: [1]")
    for name in ("best", "everywhere", "baked", "off"):
        text = "".join(line for line in text.splitlines(True) if f"name: {name}," not in line)
    comparison.write_text(text)
    output = tmp_path / "run"
    run(comparison, output)
    tables = {p.name: p.read_bytes() for p in (output / "tables").iterdir()}
    recorded = units(output)
    one, two, *_ = (i for i, u in enumerate(recorded) if u["unit"]["unit"] == "multiple_choice")
    recorded[one]["result"], recorded[two]["result"] = recorded[two]["result"], recorded[one]["result"]
    (output / "units.jsonl").write_text("".join(json.dumps(u) + "\n" for u in recorded))
    first, second = sorted((output / "fits").glob("*/tensors.safetensors"))
    second.write_bytes(first.read_bytes())
    with pytest.warns((LedgerWarning, AlteredWarning)) as warned:
        run(comparison, output)
    said = [str(w.message) for w in warned]
    assert any(f"2 of {len(recorded)} records do not match their checksum" in text for text in said)
    assert any(text.startswith(f"{second}: is not what the run recorded of it") for text in said)
    assert {p.name: p.read_bytes() for p in (output / "tables").iterdir()} == tables
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize("after", [2, pytest.param(15, marks=pytest.mark.long)])
def test_a_kill_at_any_moment_and_a_second_run_give_the_same_tables(
    whole: dict[str, Any], comparison: Path, tmp_path: Path, after: int
) -> None:
    output = tmp_path / "killed"
    # Read where the whole run read it: paths are part of the manifest, not of any unit.
    command = [Path(sys.executable).with_name("subvene"), "run", comparison, "-o", output]
    # As many threads as here, since sums over another number of threads round otherwise.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, **quiet)
    path, deadline = output / "units.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if path.is_file() and path.read_bytes().count(b"\n") >= after:
            break
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = path.read_bytes().rpartition(b"\n")[0].count(b"\n") + 1

    run(comparison, output)
    assert [u["key"] for u in units(output)][:kept] == [u["key"] for u in units(output)[:kept]]
    keys = [u["key"] for u in units(output)]
    assert len(keys) == len(set(keys))
    assert sorted(keys) == sorted(u["key"] for u in units(whole["output"]))
    for name in ("results.md", "results.csv", "cells.csv", "answers.csv"):
        assert (output / "tables" / name).read_bytes() == (whole["output"] / "tables" / name).read_bytes()


def test_a_folder_with_something_else_in_it_is_left_alone(comparison: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine"
    output.mkdir()
    (output / "thesis.txt").write_text("precious")
    with pytest.raises(SubveneError, match="choose another --output"):
        run(comparison, output)
    assert [p.name for p in output.iterdir()] == ["thesis.txt"]


def test_a_head_that_the_model_lacks_is_refused_before_anything_is_written(
    comparison: Path, tmp_path: Path
) -> None:
    comparison.write_text(comparison.read_text().replace("fit.select.k: [2, 4]", "fit.select.k: [2, 400]"))
    with pytest.raises(SubveneError, match="400"):
        run(comparison, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_judge_that_cannot_work_is_refused_before_the_model_is_loaded(
    comparison: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judge = "{kind: openai, truth_model: a, info_model: b}"
    comparison.write_text(comparison.read_text().replace("{kind: reference}", judge))
    with pytest.raises(SubveneError, match="OPENAI_API_KEY"):
        run(comparison, tmp_path / "run")
    assert not (tmp_path / "run").exists()
