"""Draws that stop early: the p of Besag and Clifford (1991), and a run that is stopped and taken up."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_experiments import LOCALIZATION
from tiny_questions import PRIMER, QUESTIONS, TEXTS, write_questions

from subvene.runner.experiments.judged_shares import judged_shares_in
from subvene.runner.experiments.localization.evidence import Stop, among_draws, evidence
from subvene.runner.experiments.localization.run import Localization
from subvene.runner.experiments.localization.section import section_of
from subvene.runner.experiments.localization.verdict import _special
from subvene.runner.experiments.results import Condition, Metric, Results
from subvene.runner.experiments.scaffold import run_study
from subvene.runner.reports.localization import render
from subvene.runner.reports.localization_tables import localization_files
from subvene.specs import ExperimentSpec, load_spec

ARMS = "arms: [iti_probed, iti_random, iti_matched, edit_probed, edit_random]"
ASKED = (
    f"{ARMS}, random: 3, random_iti: 4, sequential: {{exceedances: 2, at_a_time: 2}}, "
    "generate: [iti_probed], explore: [edit_probed], mean: {learning_rate_factor: 2, epochs: 2}, together: 3"
)


def sequential_p(probed: float, draws: list[float], exceedances: int) -> float:
    """By the words of the paper, of draws that are made one after the other."""
    good = 0
    for made, draw in enumerate(draws, 1):
        good += draw >= probed
        if good == exceedances:
            found = among_draws("edit", probed, draws[:made], "mc2", 0.95, stop=Stop("mc2", len(draws)))
            assert found.rank.p == exceedances / made
            return found.rank.p
    found = among_draws("edit", probed, draws, "mc2", 0.95)
    assert found.rank.p == (good + 1) / (len(draws) + 1)
    return found.rank.p


def test_the_p_of_stopped_draws_is_a_p() -> None:
    rng, most, h = np.random.default_rng(4), 19, 3
    values = rng.normal(size=(1500, most + 1))
    p = np.array([sequential_p(x[0], list(x[1:]), h) for x in values])
    # Exact at the values that it can have (Besag and Clifford 1991, section 3): P(p <= h/l) = h/l.
    for level in (1 / 20, 2 / 20, h / 15, h / 6, h / 4):
        assert (p <= level + 1e-9).mean() == pytest.approx(level, abs=0.03)


def test_of_stopped_draws_nothing_else_is_stated() -> None:
    draws = [0.4, 0.6, 0.3, 0.7]
    other = among_draws("edit", 0.5, draws, "mc1", 0.95, stop=Stop("mc2", 9))
    assert (other.rank.p, other.t_test, other.prediction, other.rank.most) == (None, None, None, 9)
    assert "no p is stated" in _special(other)
    own = among_draws("edit", 0.5, draws, "mc2", 0.95, of="matched", stop=Stop("mc2", 9))
    said = _special(own)
    assert "2 of 4 random sets with as many heads of each layer" in said
    assert "rank p = 0.500 (sequential: stopped with the 2nd draw to do so, of 9 draws at most)" in said
    arms = [
        Condition(name=f"{group}_{i}", label="x", group=group, metrics={"mc2": Metric(mean=value, n=4)})
        for group, values in {"edit_probed": [0.5], "edit_random": draws, "edit_matched": draws}.items()
        for i, value in enumerate(values)
    ]
    stopped = {one.draws: one.rank.p for one in evidence(arms, 0.95, {"edit_matched": Stop("mc2", 9)})}
    assert stopped == {"random": 3 / 5, "matched": 2 / 4}


@pytest.fixture
def experiment(write: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    (tmp_path / "primer.txt").write_text(PRIMER)
    (tmp_path / "texts.txt").write_text(TEXTS)
    write_questions(tmp_path / "questions.csv", QUESTIONS)

    def made(asked: str) -> Path:
        text = LOCALIZATION.replace("random: 2, single: 2", asked).replace("epochs: 3", "epochs: 1")
        return write(text + "seed: 1\n", "localization.yaml")

    return made


class Stopped(Exception):
    """The run is killed."""


def run(path: Path, output: Path, stop_after: int | None = None) -> tuple[Results, list[Any]]:
    told: list[Any] = []

    def step(what: str, value: Any) -> None:
        told.append((what, value))
        if what == "unit" and sum(one == "unit" for one, _ in told) == stop_after:
            raise Stopped

    spec = load_spec(path)
    assert isinstance(spec, ExperimentSpec)
    done = run_study(
        Localization,
        spec,
        output=output,
        folder=path.parent,
        publish=lambda folder, results: None,
        on_step=step,
    )
    return done.results, told


def test_draws_that_stop(experiment: Callable[..., Path], tmp_path: Path) -> None:
    path = experiment(ASKED)
    results, told = run(path, tmp_path / "whole")
    arms, section = {one.name: one for one in results.conditions}, section_of(results)
    # What the experiment could find is said before anything is done.
    assert told[0][0] == "power"
    said = "3 draws smallest p of a rank 0.2500 (no set can reach 0.05)"
    assert " ".join(told[0][1][0].split()) == said
    assert section.power is not None
    assert section.power.draws == {3: 0.25, 4: 0.2}
    # Each group stops with its second draw that is as good as the probed set, or has all of them.
    for group, most in (("iti_random", 4), ("iti_matched", 4), ("edit_random", 3)):
        probed = arms[f"{group.partition('_')[0]}_probed"].value("mc2") or 0.0
        values = [one.value("mc2") or 0.0 for one in results.conditions if one.group == group]
        good = [value >= probed for value in values]
        found = next(e for e in section.evidence if group == f"{e.family}_{e.draws}" and e.metric == "mc2")
        if sum(good) == 2:
            assert good[-1]
            assert (found.rank.p, found.rank.most) == (2 / len(values), most)
        else:
            assert len(values) == most
            assert found.rank.p == (1 + sum(good)) / (1 + most)
    assert any(one.rank.most for one in section.evidence)
    # Matched draws have as many heads of each layer.
    like = {layer: len(heads) for layer, heads in (section.arms["iti_probed"].heads or {}).items()}
    for name, record in section.arms.items():
        if name.startswith("iti_matched"):
            assert {layer: len(heads) for layer, heads in (record.heads or {}).items()} == like
        assert (record.unseen_accuracy is None) == (record.heads is None)
    assert section.probes is not None
    assert section.probes.unseen is not None
    at = [
        section.probes.unseen[layer][head]
        for layer, of in (section.arms["iti_probed"].heads or {}).items()
        for head in of
    ]
    assert section.arms["iti_probed"].unseen_accuracy == pytest.approx(sum(at) / len(at))
    assert any("answers to test questions, which chose nothing" in said for said in section.verdict)
    # The untouched model and the arms that are named answer.
    answering = {name for name, arm in arms.items() if any(item.text is not None for item in arm.items)}
    assert answering == {"baseline", "iti_probed"}
    assert all("mc2" in arm.metrics and "kl" in arm.metrics for arm in arms.values())
    # Every point on validation; of those that are explored on the test, too.
    points = [{"tau": 0.5}, {"tau": 1}, {"tau": 0.5, "reduction": "mean"}, {"tau": 1, "reduction": "mean"}]
    for where, names in (("validation", {"edit_probed", "iti_probed"}), ("test", {"edit_probed"})):
        own = [one for one in section.curves if one.questions == where]
        assert names <= {one.arm for one in own}
        assert [one.point for one in own if one.arm == "edit_probed"] == points
    explored = {str(one.point): one.metrics for one in section.curves if one.questions == "test"}
    assert len(section.curves) > len(explored) == 4
    assert explored[str(arms["edit_probed"].point)]["mc2"] == arms["edit_probed"].value("mc2")
    assert all({"mc1", "mc2", "kl"} <= metrics.keys() for metrics in explored.values())

    # The report says which draws were stopped, and which points are exploratory.
    page, files = render(results), localization_files(results)
    assert "Besag and Clifford" in page
    assert "EXPLORATORY, on test questions" in page
    assert "heads matched by layer" in files["results.md"]
    assert ", stopped of " in files["results.md"]
    rows = list(csv.DictReader(io.StringIO(files["curves.csv"])))
    assert {(row["questions"], row["exploratory"]) for row in rows} == {("validation", "0"), ("test", "1")}

    # Killed and taken up, it has the same result; and so if draws are made one at a time, up to rounding.
    units = sum(what == "unit" for what, _ in told)
    for stop_after in (units // 2, units - 9):
        with pytest.raises(Stopped):
            run(path, tmp_path / "killed", stop_after)
    again, _ = run(path, tmp_path / "killed")
    assert again.conditions == results.conditions
    assert again.sections == results.sections
    other, _ = run(experiment(ASKED.replace("at_a_time: 2", "at_a_time: 1")), tmp_path / "killed")
    assert [one.name for one in other.conditions] == list(arms)
    for one in other.conditions:
        assert one.value("mc2") == pytest.approx(arms[one.name].value("mc2"), abs=1e-5)


def test_arms_scored_together_are_as_if_scored_alone(experiment: Callable[..., Path], tmp_path: Path) -> None:
    few = "arms: [iti_probed, iti_random, edit_random], random: 2"
    found = [
        run(experiment(f"{few}, together: {together}"), tmp_path / str(together))[0] for together in (1, 4)
    ]
    for alone, beside in zip(found[0].conditions, found[1].conditions, strict=True):
        assert alone.point == beside.point
        for metric in ("mc1", "mc2", "mc3"):
            assert alone.value(metric) == pytest.approx(beside.value(metric), abs=1e-5)
        own, theirs = (one.receipts["multiple_choice"] for one in (alone, beside))
        for a, b in zip(own, theirs, strict=True):
            assert isinstance(a, dict)
            assert isinstance(b, dict)
            assert {k: a[k] for k in ("name", "strengths", "edited", "rows", "changed")} == {
                k: b[k] for k in ("name", "strengths", "edited", "rows", "changed")
            }


def test_points_are_chosen_by_true_info(experiment: Callable[..., Path], tmp_path: Path) -> None:
    path = experiment("arms: [iti_probed, edit_probed], selection: {by: true_info}")
    text = path.read_text()
    path.write_text(text.replace("judge: {kind: reference}", "judge: [{kind: trained}, {kind: reference}]"))
    results, _ = run(path, tmp_path / "run")
    assert [choice.condition for choice in results.choices] == ["iti_probed", "edit_probed"]
    for choice in results.choices:
        assert choice.metric == "true_info"
        values = [tried.value for tried in choice.tried]
        assert len(values) == 2
        assert all(value is not None and 0 <= value <= 1 for value in values)
        best = max(value for value in values if value is not None)
        assert choice.chosen == choice.tried[values.index(best)].point
    section = section_of(results)
    assert section.selection.metric == "true_info"
    assert {frozenset(one.metrics) >= {"true", "info", "true_info"} for one in section.curves} == {True}
    assert any("True×Info" in sentence for sentence in section.verdict)
    # The second opinion chose nothing, and how far it agrees is Cohen's κ over all answers.
    said = [
        (item.scores["true"], item.scores["true_second"]) for one in results.conditions for item in one.items
    ]
    opinions = judged_shares_in(results).agreement["true"]
    n, same = len(said), sum(a == b for a, b in said)
    yes, other = (sum(bool(pair[i]) for pair in said) / len(said) for i in (0, 1))
    by_chance = yes * other + (1 - yes) * (1 - other)
    assert (opinions.n, opinions.share) == (n, same / n)
    if 0 < yes < 1 and 0 < other < 1:
        assert opinions.kappa == pytest.approx((same / n - by_chance) / (1 - by_chance))
    else:
        assert opinions.kappa is None
