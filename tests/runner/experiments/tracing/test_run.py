"""Tracing runs: units, what is done again, what is left out, and effects counted a second time."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_experiments import FACTS, write_experiments
from typer.testing import CliRunner

from subvene.runner import IntervenedModel, Results, run_experiment
from subvene.runner.cli.app import app
from subvene.runner.experiments.tracing.effects import RoleEffects, band_of, interval, peak_of
from subvene.runner.experiments.tracing.section import Trace, tracing_of
from subvene.specs import SubveneError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tracing")
    path = write_experiments(made, "http://127.0.0.1:1", ["tracing"])["tracing"]
    text = path.read_text()
    path.write_text(text[: text.index("- {kind: patching")])
    return made


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return run_experiment(folder / "tracing.yaml", output=folder / "run").results


def units(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["unit"] for line in (output / "units.jsonl").read_text().splitlines()]


def test_every_number_is_a_mean_of_the_maps(results: Results) -> None:
    for trace in tracing_of(results).traces:
        assert len(trace.facts) == len(FACTS)
        for site in trace.sites:
            assert {one.traced.way for one in site.maps} == {"packed"}
            for effect in site.effects:
                by_fact = [mean_effect(trace, one, effect) for one in site.maps]
                known = [value for value in by_fact if value is not None]
                assert effect.value.n == len(known)
                assert effect.value.mean == pytest.approx(statistics.mean(known), abs=1e-12)
                if len(known) > 1:
                    assert effect.value.low is not None
                    assert effect.value.high is not None
                    assert min(known) - 1e-9 <= effect.value.low <= effect.value.mean + 1e-9
                    assert effect.value.mean - 1e-9 <= effect.value.high <= max(known) + 1e-9


def mean_effect(trace: Trace, one: Any, effect: Any) -> float | None:
    fact = trace.fact(one.key)
    row = one.traced.values[effect.metric][one.traced.layers.index(effect.layer)]
    values = [v for v, role in zip(row, fact.roles, strict=True) if role == effect.role]
    return statistics.mean(values) - fact.read.corrupted[effect.metric] if values else None


def test_swapped_and_noisy_runs_share_the_clean_one(results: Results) -> None:
    noisy, swapped = tracing_of(results).traces
    assert (noisy.name, swapped.name) == ("causal_tracing", "causal_tracing_2")
    assert (noisy.corruption, swapped.corruption) == ("noise", "swap")
    for one, other in zip(noisy.facts, swapped.facts, strict=True):
        assert one.read.clean == other.read.clean
        assert one.read.corrupted != other.read.corrupted
        assert len(one.read.draws["probability"]) == 2
        assert len(other.read.draws["probability"]) == 1
        assert (one.read.deviation is None, other.read.deviation is None) == (False, True)
    assert {e.layer for e in swapped.sites[0].effects} == {0, 2}


def test_only_what_changed_is_done_again(folder: Path, results: Results) -> None:
    output, text = folder / "run", (folder / "tracing.yaml").read_text()
    changed = folder / "changed.yaml"

    def new_after(new: str) -> list[str]:
        before = len(units(output))
        changed.write_text(new)
        run_experiment(changed, output=output)
        return [unit["unit"] for unit in units(output)[before:]]

    assert len(units(output)) == 3 * 3 + 3 * 2
    assert new_after(text) == []
    # What is made of the cells costs nothing.
    assert new_after(text.replace("metrics: [probability,", "metrics: [log_probability,")) == []
    assert new_after(text.replace("window: 2", "window: 3")) == ["trace"] * 3
    assert new_after(text + "seed: 3\n") == ["fact", "trace", "trace"] * 3 + ["fact", "trace"] * 3
    assert Results.load(output).section("tracing", type(tracing_of(results))) is not None


def test_facts_that_the_model_does_not_know_are_left_out_and_named(folder: Path) -> None:
    text = (folder / "tracing.yaml").read_text().replace("known: false", "known: true")
    (folder / "known.yaml").write_text(text)
    with pytest.raises(SubveneError, match="of 3 facts the model knows none"):
        run_experiment(folder / "known.yaml", output=folder / "known")


def test_one_known_fact_has_no_interval(folder: Path, results: Results) -> None:
    trace = tracing_of(results).traces[0]
    fact = trace.facts[0]
    lines = [dict(one) for one in FACTS]
    lines[0]["answer"] = fact.predicted
    (folder / "one.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = (folder / "tracing.yaml").read_text().replace("known: false", "known: true")
    (folder / "one.yaml").write_text(text.replace("facts.jsonl", "one.jsonl"))
    done = run_experiment(folder / "one.yaml", output=folder / "one").results
    known = tracing_of(done).traces[0]
    assert [one.subject for one in known.left_out] == [FACTS[1]["subject"], FACTS[2]["subject"]]
    assert "2 facts that the model does not know: you, train" in done.notes[0]
    assert {effect.value.n for effect in known.sites[0].effects} == {1}
    assert all(effect.value.low is None for effect in known.sites[0].effects)
    assert not any(peak.stands_out for site in known.sites for peak in site.peaks)


def test_the_command_prints_and_validates(folder: Path, results: Results) -> None:
    said = CliRunner().invoke(app, ["run", str(folder / "tracing.yaml"), "-o", str(folder / "run")])
    assert said.exit_code == 0
    assert "causal tracing: probability, total effect" in said.output
    assert "mlp_output, 2 layers" in said.output
    assert CliRunner().invoke(app, ["validate", str(folder / "tracing.yaml")]).exit_code == 0
    (folder / "facts-broken.jsonl").write_text('{"prompt": "the sun", "subject": "sun"}\n')
    broken = folder / "broken.yaml"
    broken.write_text((folder / "tracing.yaml").read_text().replace("facts.jsonl", "facts-broken.jsonl"))
    said = CliRunner().invoke(app, ["validate", str(broken)])
    assert said.exit_code != 0
    assert "facts-broken.jsonl:1: expected a column `answer` or `attribute`" in said.output


def test_nothing_is_generated_with_a_file_that_edits_nothing(folder: Path) -> None:
    with pytest.raises(SubveneError, match="declares no interventions: it measures the model as it is"):
        IntervenedModel.from_spec(folder / "tracing.yaml")


def test_tables_hold_every_cell(folder: Path, results: Results) -> None:
    trace = tracing_of(results).traces[0]
    with (folder / "run" / "tables" / "cells.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["evaluation"] == trace.name]
    assert len(rows) == sum(len(f.pieces) * 3 * 2 for f in trace.facts)
    row = next(r for r in rows if (r["site"], r["layer"], r["token"]) == ("block_output", "1", "2"))
    value = trace.sites[0].maps[0].traced.values["probability"][1][2]
    assert float(row["probability"]) == value


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (("layers: [0, 2]", "layers: [0, 3]"), "layers: 3 is out of range: this model has layers 0 to 2"),
        (("facts.jsonl", "no-swap.jsonl"), "fact 2 .train.: expected a `swap`"),
        (("facts.jsonl", "twice.jsonl"), "the same as fact 2"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_is_loaded(
    changed: tuple[str, str], expected: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps(fact) + "\n" for fact in FACTS]
    (folder / "twice.jsonl").write_text("".join([*lines, lines[2]]))
    without = {key: value for key, value in FACTS[2].items() if key != "swap"}
    (folder / "no-swap.jsonl").write_text("".join([*lines[:2], json.dumps(without) + "\n"]))
    (folder / "wrong.yaml").write_text((folder / "tracing.yaml").read_text().replace(*changed))

    def loaded(*_: Any, **__: Any) -> None:
        pytest.fail("the model was loaded")

    monkeypatch.setattr("subvene.runner.experiments.scaffold.load_model", loaded)
    with pytest.raises(SubveneError, match=expected):
        run_experiment(folder / "wrong.yaml", output=folder / "wrong")


def role_effects(values: np.ndarray, floor: np.ndarray) -> RoleEffects:
    return RoleEffects("probability", "last", values, floor)


def test_a_peak_of_noise_stands_out_as_rarely_as_the_level_says_and_an_effect_does() -> None:
    random, layers, found = np.random.default_rng(0), range(30), []
    for _ in range(200):
        one = role_effects(random.normal(size=(24, 30)), random.normal(size=(24, 12)))
        found.append(peak_of(one, layers, band_of(one, 300, 0), 300, 0).stands_out)
    assert sum(found) <= 6  # one-sided, and above a floor
    strong = random.normal(size=(24, 30))
    strong[:, 7] += 3
    one = role_effects(strong, random.normal(size=(24, 12)))
    peak = peak_of(one, layers, band_of(one, 2000, 0), 2000, 0)
    assert (peak.layer, peak.stands_out) == (7, True)
    assert peak.value.mean == pytest.approx(strong[:, 7].mean())


def test_the_floor_is_the_mean_of_one_meaningless_cell_a_fact() -> None:
    floor = np.random.default_rng(2).normal(size=(24, 12))
    band = band_of(role_effects(floor, floor), 5000, 0)
    within = float(floor.var(1).mean() / 24) ** 0.5
    assert band.low == pytest.approx(floor.mean() - 1.96 * within, abs=0.05)
    assert band.high == pytest.approx(floor.mean() + 1.96 * within, abs=0.05)


def test_an_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(2, 1, size=50)
    found = interval(values, 20_000, 0)
    half = 1.96 * values.std() / 50**0.5
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)
