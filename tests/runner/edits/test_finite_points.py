"""A sweep marks the points that are no longer finite, in words, and goes on with the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_questions import PRIMER, QUESTIONS, TEXTS, write_questions

from subvene.runner import IntervenedModel, NotFiniteError, run_experiment
from subvene.runner.edits.finite_points import marking, over_finite_points
from subvene.runner.experiments.persona.section import SweepPoint
from subvene.runner.experiments.persona.sweep import choice_of
from subvene.runner.experiments.results import Metric
from subvene.runner.experiments.rows import rows
from subvene.runner.measures.contrast import run_contrast
from subvene.runner.measures.samples import run_samples
from subvene.runner.reports.documents import in_markdown
from subvene.runner.reports.tables import document
from subvene.specs import ContrastSpec, SamplesSpec, TraitSweepSpec

Run = Callable[..., Any]
TOO_STRONG = 1e30
PAIRS = [
    {"prompt": "how is the day", "positive": "happy and good", "negative": "gloomy"},
    {"prompt": "hello", "positive": "glad", "negative": "i am very very sad"},
]


# The mechanism --------------------------------------------------------------------------------------------


def test_rows_of_a_point_go_together_and_the_others_are_run_again() -> None:
    ran: list[list[int]] = []

    def run(which: list[int]) -> list[int]:
        ran.append(which)
        if bad := {place: "too strong" for place, row in enumerate(which) if row == 4}:
            raise NotFiniteError("no", bad)
        return which

    assert over_finite_points(["a", "b", "a", "b", "b"], run) == ([0, 2], [0, 2], {"b": "too strong"})
    assert ran == [[0, 1, 2, 3, 4], [0, 2]]


@pytest.mark.parametrize("error", [NotFiniteError("no", {0: "no"}, of_model=True), NotFiniteError("no")])
def test_a_model_that_is_not_finite_itself_ends_the_sweep(error: NotFiniteError) -> None:
    def run(_which: list[int]) -> None:
        raise error

    with pytest.raises(NotFiniteError):
        over_finite_points(["a"], run)


def test_a_unit_that_is_no_point_of_a_sweep_is_not_marked() -> None:
    def work() -> dict[str, Any]:
        raise NotFiniteError("too strong")

    assert marking(True, work)() == {"not_finite": "too strong"}
    with pytest.raises(NotFiniteError):
        marking(False, work)()


# Evaluations ----------------------------------------------------------------------------------------------


@pytest.fixture
def m(steer: Path) -> IntervenedModel:
    return IntervenedModel.from_spec(steer)


def test_samples(m: IntervenedModel, tmp_path: Path) -> None:
    spec = SamplesSpec(prompts=("hello", "the train"), coefficients=(0.0, TOO_STRONG, 1.0), max_new_tokens=4)
    found = run_samples(m, spec, tmp_path)
    expected = run_samples(m, spec.model_copy(update={"coefficients": (0.0, 1.0)}), tmp_path)
    marked = [record for record in found["records"] if record["coefficient"] == TOO_STRONG]
    assert [record["response"] for record in marked] == [None, None]
    assert all("'glad' at block_output[1] moves" in record["not_finite"] for record in marked)
    assert [r for r in found["records"] if r["coefficient"] != TOO_STRONG] == expected["records"]
    assert found["receipt"] == expected["receipt"]
    json.dumps(found, allow_nan=False)


def test_contrast(m: IntervenedModel, tmp_path: Path) -> None:
    given = {"coefficients": [0.0, TOO_STRONG, 1.0], "pairs": {"texts": PAIRS}, "batch_size": 3}
    found = run_contrast(m, ContrastSpec.model_validate(given), tmp_path)
    expected = run_contrast(m, ContrastSpec.model_validate(given | {"coefficients": [0.0, 1.0]}), tmp_path)
    first, marked, last = found["records"]
    for record, other in zip((first, last), expected["records"], strict=True):
        assert record == pytest.approx(other, abs=1e-5)
    assert marked["mean_difference"] is None
    assert "'glad'" in marked["not_finite"]
    assert found["pairs"][1] is None
    json.dumps(found, allow_nan=False)


def test_a_sweep_of_which_nothing_stays(m: IntervenedModel, tmp_path: Path) -> None:
    given = {"coefficients": [TOO_STRONG], "pairs": {"texts": PAIRS}}
    found = run_contrast(m, ContrastSpec.model_validate(given), tmp_path)
    assert found["records"][0]["positive_preferred"] is None


def test_a_model_that_is_not_finite_has_no_samples(m: IntervenedModel, tmp_path: Path) -> None:
    m.model.lm_head.weight.data[:] = torch.nan
    with pytest.raises(NotFiniteError, match="untouched model"):
        run_samples(m, SamplesSpec(prompts=("hello",), coefficients=(0.0, 1.0), max_new_tokens=2), tmp_path)


# The command ----------------------------------------------------------------------------------------------


@pytest.fixture
def subvene() -> Run:
    from typer.testing import CliRunner

    from subvene.runner.cli.app import app

    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


def test_generate_fails_with_the_code_of_a_run_that_was_not_steered(subvene: Run, steer: Path) -> None:
    result = subvene("generate", steer, "-p", "hello", "--strength", TOO_STRONG)
    assert result.exit_code == 3
    assert "no longer finite under 'glad'" in result.stderr
    assert "receipt" not in result.output


def test_compare_shows_the_untouched_answer_and_fails(subvene: Run, steer: Path) -> None:
    asked = ("generate", steer, "-p", "hello", "-p", "the train", "--max-new-tokens", 4, "--compare")
    result = subvene(*asked, "--strength", TOO_STRONG, "--json")
    assert result.exit_code == 3
    plain = json.loads(subvene(*asked, "--strength", 1, "--json").stdout)["records"]
    for record, other in zip(json.loads(result.stdout)["records"], plain, strict=True):
        assert record["baseline"] == other["baseline"]
        assert record["response"] is None
        assert "'glad'" in record["not_finite"]
    result = subvene(*asked, "--strength", TOO_STRONG)
    assert result.exit_code == 3
    assert "not finite" in result.stdout


def test_compare_of_several_strengths_goes_on(subvene: Run, write: Run) -> None:
    spec = write(
        "interventions:\n- {kind: steering, name: glad, layer: 1, vector: {file: t.safetensors, key: v}, "
        "coefficient: [1.0, 1.0e+30], positions: response}\n"
    )
    asked = ("generate", spec, "-p", "hello", "-p", "the train", "--max-new-tokens", 4, "--compare", "--json")
    result = subvene(*asked)
    assert result.exit_code == 0, result.stderr
    first, second = json.loads(result.stdout)["records"]
    assert first["response"]
    assert "not_finite" not in first
    assert second["response"] is None
    assert "'glad'" in second["not_finite"]


# Comparisons ----------------------------------------------------------------------------------------------

COMPARISON = """\
fit: {recipe: iti, key: t, data: {file: questions.csv}, select: {rule: top_k, k: 3},
  ranking_folds: 2, validation: 0.34}
interventions:
- {kind: head_direction, name: iti, directions: {key: t}, strength: 3, positions: response}
conditions: CONDITIONS
evaluate:
- {kind: truthfulqa, data: {file: questions.csv}, preset: qa, primer: primer.txt, max_new_tokens: 3,
   measure: [multiple_choice]}
- {kind: divergence, texts: {file: texts.txt}, max_tokens: 8}
"""


@pytest.fixture
def comparison(write: Run, tmp_path: Path) -> Run:
    write_questions(tmp_path / "questions.csv", QUESTIONS)
    (tmp_path / "primer.txt").write_text(PRIMER)
    (tmp_path / "texts.txt").write_text(TEXTS)
    return lambda conditions: write(COMPARISON.replace("CONDITIONS", conditions), "comparison.yaml")


def test_a_swept_condition_marks_its_point_and_choose_takes_another(comparison: Run, tmp_path: Path) -> None:
    spec = comparison(
        "[{name: baseline, interventions: []}, {name: swept, sweep: {iti.strength: [1.0, 1.0e+30]}}, "
        "{name: best, sweep: {iti.strength: [1.0e+30, 1.0]}, choose: {by: mc2}}]"
    )
    results = run_experiment(spec, output=tmp_path / "run").results
    by_label = {row.label: row for row in rows(results.conditions)}
    marked = by_label["swept strength=1e+30"]
    assert marked.metrics == {}
    assert "'iti'" in (marked.not_finite or "")
    assert by_label["swept strength=1.0"].metrics["mc2"].n == 1
    (choice,) = results.choices
    assert choice.chosen == {"iti.strength": 1.0}
    assert [(tried.not_finite is not None, tried.value is None) for tried in choice.tried] == [
        (True, True),
        (False, False),
    ]
    table = in_markdown(document(results))
    assert "| swept strength=1e+30 | not finite |" in table
    assert "is not finite on the validation questions and was not chosen from" in table
    stored = (tmp_path / "run" / "results.json").read_text()
    assert "NaN" not in stored
    assert "Infinity" not in stored
    assert "not finite" in (tmp_path / "run" / "report.html").read_text()
    assert "not_finite" in (tmp_path / "run" / "tables" / "results.csv").read_text()


def test_a_condition_that_is_no_sweep_fails_the_run(comparison: Run, tmp_path: Path) -> None:
    spec = comparison("[{name: iti, set: {iti.strength: 1.0e+30}}]")
    with pytest.raises(NotFiniteError, match="'iti'"):
        run_experiment(spec, output=tmp_path / "run")


def test_a_sweep_without_a_finite_point_has_nothing_to_choose(comparison: Run, tmp_path: Path) -> None:
    spec = comparison("[{name: best, sweep: {iti.strength: [1.0e+30, 1.0e+31]}, choose: {by: mc2}}]")
    with pytest.raises(NotFiniteError, match="no point of its sweep stays finite"):
        run_experiment(spec, output=tmp_path / "run")


def test_the_best_point_is_never_one_that_is_not_finite() -> None:
    sweep = TraitSweepSpec(layers=(1,), coefficients=(1.0,), choose={"by": "score", "coherence": 50})  # type: ignore[arg-type]
    measured = {"layer": 1, "n": 1, "refused": 0, "coherence": Metric(mean=90, n=1)}
    marked = SweepPoint.model_validate(
        measured | {"coefficient": 2.0, "score": Metric(mean=99, n=1), "not_finite": "too strong"}
    )
    other = SweepPoint.model_validate(measured | {"coefficient": 1.0, "score": Metric(mean=60, n=1)})
    choice = choice_of(sweep, "early", [marked, other])
    assert choice is not None
    assert choice.chosen == {"layer": 1, "coefficient": 1.0}
    assert [tried.not_finite for tried in choice.tried] == ["too strong", None]
    alone = choice_of(sweep, "early", [marked])
    assert alone is not None
    assert alone.chosen is None
