"""One file with fits, kinds and evaluations of every sort, as a stranger would write it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import loopback
import pytest
import torch
from small_experiments import TRAIT, Scripted, write_experiments
from typer.testing import CliRunner

from subvene.runner import run_experiment
from subvene.runner.cli.app import app
from subvene.runner.experiments.intervals import intervals_in
from subvene.runner.experiments.results import Condition, Results
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.measures.contrast import differences
from subvene.runner.recipes.random_direction import draw
from subvene.specs import RandomDirectionSpec

NAMES = {
    *("mc1", "mc2", "mc3", "empty", "true", "info", "true_info", "true_and_info", "ce", "kl", "accuracy"),
    *("early_score", "early_coherence", "early_projection", "contrast", "contrast_preferred"),
}


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """The results and the folder of one run, filled by the first test that asks."""
    return {}


@pytest.fixture
def done(kept: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Results, Path, Path]:
    if not kept:
        monkeypatch.setenv("SUBVENE_CACHE", str(tmp_path / "cache"))
        with loopback.serve(Scripted) as url:
            path = write_experiments(tmp_path, url, ["mixed"])["mixed"]
            # With two seeds the reports' contract runs it (tests/runner/reports/test_contract.py).
            path.write_text(path.read_text().replace("seeds: [1, 2]", "seeds: [1]"))
            kept["results"] = run_experiment(path, output=tmp_path / "run").results
            steps: list[bool] = []

            def told(what: str, value: Any) -> None:
                if what == "unit":
                    steps.append(value["was_done"])

            kept["again"] = run_experiment(path, output=tmp_path / "run", on_step=told).results
            kept["steps"] = steps
        kept["folder"], kept["path"] = tmp_path / "run", path
    return kept["results"], kept["folder"], kept["path"]


def of(results: Results, name: str) -> list[Condition]:
    return [one for one in results.conditions if one.name == name]


def test_every_evaluation_is_measured_of_every_condition(done: tuple[Results, Path, Path]) -> None:
    results, folder, _ = done
    names = ("untouched", "prompt", "mean", "chance", "persona", "cap", "iti", "baked")
    assert len(results.conditions) == len(names) * 2
    for name in names:
        for cell in of(results, name):
            owed = {m for m in NAMES if m not in cell.metrics}
            assert owed <= {"true", "info", "true_info", "true_and_info"}, (name, owed)
            assert cell.not_finite is None
    untouched = of(results, "untouched")[0]
    assert untouched.value("kl") == 0.0
    for name in names[1:]:
        assert all((cell.value("kl") or 0.0) > 0 for cell in of(results, name)), name
        receipts = [cell.receipts.get("contrast") for cell in of(results, name)]
        assert all(bool(one) == (name not in ("prompt", "baked")) for one in receipts), name
    for table in ("results.md", "results.csv"):
        text = (folder / "tables" / table).read_text()
        assert "early_score" in text or "early score" in text
    assert (folder / "report.html").stat().st_size > 0
    assert Results.load(folder).to_pandas()["early_score"].notna().all()


def test_intervals_hold_their_numbers_and_differences_are_from_the_first_condition(
    done: tuple[Results, Path, Path],
) -> None:
    found = intervals_in(done[0])
    assert found.against == "untouched"
    contrast = found.rows["mean"]["contrast"]
    cells = of(done[0], "mean")
    assert contrast.items == 3
    assert contrast.low <= cells[0].metrics["contrast"].mean <= contrast.high
    gap = found.differences["mean"]["contrast"]
    by_hand = cells[0].metrics["contrast"].mean - of(done[0], "untouched")[0].metrics["contrast"].mean
    assert gap.value == pytest.approx(by_hand)
    assert gap.low <= gap.value <= gap.high


def test_a_point_is_chosen_on_questions_that_nothing_is_tested_on(done: tuple[Results, Path, Path]) -> None:
    results, _, _ = done
    choices = [choice for choice in results.choices if choice.condition == "persona"]
    assert len(choices) == 2
    asked = {
        results.questions[item.key].question
        for cell in of(results, "persona")
        for item in cell.items
        if "early_score" in item.scores
    }
    assert "tell me" in asked
    assert TRAIT["evaluation_questions"][0] not in asked
    for choice in choices:
        best = max(choice.tried, key=lambda one: -1.0 if one.value is None else one.value)
        assert choice.chosen == best.point


def test_an_artifact_of_one_condition_holds_its_own_tensors(done: tuple[Results, Path, Path]) -> None:
    results, folder, _ = done
    cell = of(results, "mean")[0]
    assert cell.artifact is not None
    m = IntervenedModel.from_pretrained(folder / cell.artifact)
    assert {name.split(".")[0] for name in m.tensors} == {"glad"}
    values, _ = differences(m, [("are you glad", "very happy", "very gloomy")], batch_size=4)
    first = next(item for item in cell.items if "contrast" in item.scores)
    assert values[0] == pytest.approx(first.scores["contrast"], abs=1e-4)


def test_it_goes_on_from_what_is_done(done: tuple[Results, Path, Path], kept: dict[str, Any]) -> None:
    assert kept["steps"]
    assert all(kept["steps"])
    assert kept["again"].conditions == done[0].conditions


def test_a_random_direction_is_as_long_as_the_other_and_its_own() -> None:
    given = {"v.block_output[1]": torch.randn(64) * 3, "v.block_output[1].residual_norm": torch.tensor(7.0)}
    spec = RandomDirectionSpec(key="r", like="v")
    drawn = draw(spec, given, seed=1).tensors
    vector = drawn["r.block_output[1]"]
    assert float(vector.norm()) == pytest.approx(float(given["v.block_output[1]"].norm()), rel=1e-5)
    assert drawn["r.block_output[1].residual_norm"] == 7.0
    assert torch.equal(vector, draw(spec, given, seed=1).tensors["r.block_output[1]"])
    assert not torch.equal(vector, draw(spec, given, seed=2).tensors["r.block_output[1]"])
    cosine = torch.cosine_similarity(vector, given["v.block_output[1]"], dim=0)
    assert abs(float(cosine)) < 0.5


SEVERAL = """\
fit:
- recipe: mean_difference
  key: glad
  pairs: {file: pairs.yaml}
- {recipe: random_direction, key: chance, like: glad}
interventions:
- {kind: steering, name: glad, layer: 1, vector: {key: glad}, coefficient: 2, positions: response}
- {kind: steering, name: chance, layer: 1, vector: {key: chance}, coefficient: 1, positions: response}
"""
PAIRS = """\
texts:
- {prompt: how are you, positive: i am very happy, negative: i am very gloomy}
"""


def test_several_fits_are_one_artifact_each_told_of(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(SEVERAL, "several.yaml")
    (tmp_path / "pairs.yaml").write_text(PAIRS.replace("gloomy}", "gloomy"))
    wrong = CliRunner().invoke(app, ["validate", str(path)])
    assert wrong.exit_code != 0
    assert "pairs.yaml" in wrong.output
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    told = CliRunner().invoke(app, ["fit", str(path), "-o", str(tmp_path / "fitted")])
    assert told.exit_code == 0, told.output
    assert "glad from 1 pairs of texts" in told.output
    assert "chance: 3 random directions, as long as those of glad" in told.output
    m = IntervenedModel.from_pretrained(tmp_path / "fitted")
    assert {name.split(".")[0] for name in m.tensors} == {"glad", "chance"}
    assert [fit["recipe"] for fit in m.provenance["fits"]] == ["mean_difference", "random_direction"]
