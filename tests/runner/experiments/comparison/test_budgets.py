"""Budgets: strengths at the same divergence, found without taking it to rise, and what meets none."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_questions import TEXTS

from subvene.runner import run_experiment
from subvene.runner.experiments.comparison.budgets import budgets_in
from subvene.runner.experiments.comparison.strength_search import rises, search
from subvene.runner.experiments.intervals import intervals_in
from subvene.runner.experiments.results import Results
from subvene.specs import SpecError, parse_spec
from subvene.specs.conditions import BudgetSpec

EXPERIMENT = """\
fit:
- recipe: mean_difference
  key: glad
  pairs:
    texts:
    - {prompt: how are you, positive: i am very happy, negative: i am very gloomy}
    - {prompt: tell me about the day, positive: the sun is good, negative: the rain is bad}
- {recipe: random_direction, key: chance, like: glad}
interventions:
- &glad {kind: steering, name: glad, layer: 1, vector: {key: glad}, coefficient: 2, positions: response}
- {<<: *glad, name: chance, vector: {key: chance}}
default_arms: false
conditions:
- {name: untouched, interventions: []}
- {name: glad, interventions: [glad], sweep: {glad.layer: [0, 2]},
   choose: {by: contrast, budget: {kl: 0.02}}}
- {name: more, interventions: [glad], choose: {budget: {kl: 0.04}}}
- {name: chance, interventions: [chance], choose: {budget: {kl: 0.02}}}
- {name: weak, interventions: [chance], choose: {budget: {kl: 8, most: 1}}}
- {name: both, like: weak, interventions: [glad, chance]}
evaluate:
- kind: contrast
  validation: 1
  pairs:
    texts:
    - {prompt: are you sad, positive: very happy, negative: very gloomy}
    - {prompt: how is the sun, positive: it is good, negative: it is bad}
    - {prompt: how is the rain, positive: it is good, negative: it is bad}
- {kind: divergence, texts: {file: texts.txt}, max_tokens: 8, validation: 2}
"""


def found_for(kl: Callable[[float], float | None], **fields: Any) -> Any:
    return search(kl, BudgetSpec(kl=0.3, **fields))


@pytest.mark.parametrize("scale", [1e-4, 0.01, 0.29, 1.0, 40.0])
@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_a_power_law_is_met_within_five_percent_in_few_evaluations(scale: float, power: float) -> None:
    found = found_for(lambda x: scale * x**power, least=1e-4, most=1e4)
    assert scale * found.multiple**power == pytest.approx(0.3, rel=0.05)
    assert len(found.tried) <= 5 + abs(math.log2((0.3 / scale) ** (1 / power)))
    assert rises(found.tried)


def test_a_curve_that_bends_is_met_and_both_budgets_share_their_doublings() -> None:
    def kl(x: float) -> float:
        return 4 * (1 - math.exp(-((x / 9) ** 3)))

    small, large = search(kl, BudgetSpec(kl=0.1)), search(kl, BudgetSpec(kl=0.3))
    assert kl(small.multiple or 0) == pytest.approx(0.1, rel=0.05)
    assert kl(large.multiple or 0) == pytest.approx(0.3, rel=0.05)
    assert {one.multiple for one in small.tried} & {one.multiple for one in large.tried} >= {1.0, 2.0, 4.0}


def test_of_several_strengths_the_smallest_is_taken_and_that_kl_falls_is_known() -> None:
    def hump(x: float) -> float:  # 0.3 is met near 0.42, on the way down near 0.58, and again near 1.3
        return 0.4 * math.exp(-(((x - 0.5) / 0.15) ** 2)) + 0.1 * x**4

    found = found_for(hump)
    assert hump(found.multiple) == pytest.approx(0.3, rel=0.05)
    assert found.multiple < 0.5
    assert not rises(found.tried)


def test_what_stays_below_what_stays_above_and_a_jump_are_no_budget_met() -> None:
    below = found_for(lambda x: 0.2 * min(x, 1.0), most=8.0)
    assert below.multiple is None
    assert "cannot be reached: KL is at most 0.2 at 1 times the declared strengths" in below.why
    above = found_for(lambda x: 0.5, least=0.25)
    assert above.multiple is None
    assert "cannot be kept to: KL is at least 0.5" in above.why
    jump = found_for(lambda x: 0.1 if x < 3 else 2.0)
    assert jump.multiple is None
    assert "was not met within 5%" in jump.why
    assert len(jump.tried) <= 24


def test_a_kl_that_rounding_puts_below_zero_is_searched_on_from() -> None:
    found = found_for(lambda x: -1e-17 if x < 8 else 0.01 * x)
    assert found.multiple is not None
    assert 0.01 * found.multiple == pytest.approx(0.3, rel=0.05)
    jump = found_for(lambda x: -1e-17 if x < 8 else 2.0)
    assert "was not met within 5%" in jump.why


def test_strengths_that_are_not_finite_are_beyond_the_budget() -> None:
    found = found_for(lambda x: None if x > 5 else 0.02 * x**2)
    assert 0.02 * found.multiple**2 == pytest.approx(0.3, rel=0.05)


@pytest.fixture
def experiment(write: Callable[..., Path], tmp_path: Path) -> Path:
    (tmp_path / "texts.txt").write_text(TEXTS)
    return write(EXPERIMENT, "budgets.yaml")


def test_conditions_stand_at_the_same_divergence_or_have_no_numbers(experiment: Path, tmp_path: Path) -> None:
    results = run_experiment(experiment, output=tmp_path / "run").results
    searches = budgets_in(results)
    assert [one.condition for one in searches] == ["glad", "glad", "more", "chance", "weak"]
    for one in searches[:-1]:
        assert one.reached == pytest.approx(one.kl, rel=0.05)
        assert one.texts == 2
    by_name = {one.name: one for one in results.conditions}
    glad = next(one for one in searches if one.chosen == by_name["glad"].point)
    assert glad.chosen is not None
    assert glad.chosen["glad.coefficient"] == pytest.approx(2 * (glad.multiple or 0), rel=1e-5)
    assert {one.point["glad.layer"] for one in results.choices[0].tried} == {0, 2}
    assert by_name["more"].point["glad.coefficient"] > 0
    # A strength that is too small by far keeps to no budget, and neither does what starts from it.
    assert "cannot be reached" in str(by_name["weak"].out_of_reach)
    assert "it starts from weak" in str(by_name["both"].out_of_reach)
    assert not by_name["weak"].metrics
    assert "weak" not in intervals_in(results).rows
    table = (tmp_path / "run" / "tables" / "results.md").read_text()
    assert "| weak | budget not met | budget not met |" in table
    table = (tmp_path / "run" / "tables" / "budgets.md").read_text()
    assert "weak, seed 0, fold 0 is not compared: a KL of 8 cannot be reached" in table
    with (tmp_path / "run" / "tables" / "budgets.csv").open(newline="") as file:
        tried = [row for row in csv.DictReader(file) if row["condition"] == "more"]
    assert sum(row["chosen"] == "True" for row in tried) == 1
    assert Results.load(tmp_path / "run") == results


def test_no_condition_is_tested_on_the_texts_of_its_budget_and_nothing_is_done_twice(
    experiment: Path, tmp_path: Path
) -> None:
    done: list[bool] = []

    def told(what: str, value: Any) -> None:
        if what == "unit":
            done.append(value["was_done"])

    first = run_experiment(experiment, output=tmp_path / "run", on_step=told).results
    texts = [text.strip() for text in TEXTS.split("\n\n") if text.strip()]
    asked = {
        first.questions[item.key].question for one in first.conditions for item in one.items if item.tokens
    }
    assert asked
    assert not asked & set(texts[:2])
    done.clear()
    again = run_experiment(experiment, output=tmp_path / "run", on_step=told).results
    assert done
    assert all(done)
    assert again.conditions == first.conditions
    assert budgets_in(again) == budgets_in(first)


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        (", validation: 2}", "}", "evaluate[1].validation", "for budgets alone"),
        ("- {kind: divergence, texts: {file: texts.txt}, max_tokens: 8, validation: 2}\n", "",
         "conditions[1].choose.budget", "an entry `{kind: divergence, validation: N}`"),
        ("choose: {budget: {kl: 0.04}}", "choose: {by: contrast, budget: {kl: 0.04}}",
         "conditions[2].choose.by", "no `sweep`"),
        ("by: contrast, budget: {kl: 0.02}", "budget: {kl: 0.02}", "conditions[1].choose.by", "the metric"),
        ("sweep: {glad.layer: [0, 2]}", "sweep: {glad.coefficient: [1, 2]}",
         "conditions[1].sweep.glad.coefficient", "`budget` finds this strength"),
        ("coefficient: 2,", "coefficient: 0,", "conditions[1].choose.budget", "other than 0"),
        ("[chance], choose: {budget: {kl: 0.02}}", "[], choose: {budget: {kl: 1}}",
         "conditions[3].choose.budget", "no intervention acts here"),
        ("kl: 0.04", "kl: 0", "conditions[2].choose.budget.kl", "above 0"),
        ("most: 1", "most: 0.5", "conditions[4].choose.budget.most", "side of 1"),
        ("choose: {budget: {kl: 0.04}}", "choose: {}", "conditions[2].choose.by", "a metric, or a `budget`"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(old: str, new: str, place: str, words: str) -> None:
    assert old in EXPERIMENT
    with pytest.raises(SpecError) as caught:
        parse_spec("subvene: 1\nmodel: {name: a/b}\n" + EXPERIMENT.replace(old, new))
    assert place in str(caught.value)
    assert words in str(caught.value)


def test_the_arms_that_belong_there_are_added_and_stand_at_the_same_budget(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text(TEXTS)
    head, rest = EXPERIMENT.replace("default_arms: false\n", "").split("conditions:\n")
    head = head[: head.index("- {<<: *glad")].replace(
        "- {recipe: random_direction, key: chance, like: glad}\n", ""
    )
    own = """\
conditions:
- {name: glad, interventions: [glad], choose: {budget: {kl: 0.02}}}
- {name: asked, interventions: [], system: you are very glad}
"""
    path = write(head + own + rest[rest.index("evaluate:") :], "own.yaml")
    results = run_experiment(path, output=tmp_path / "run").results
    assert [one.name for one in results.conditions] == ["untouched", "glad", "asked", "random_0_02"]
    assert [one.reached for one in budgets_in(results)] == [pytest.approx(0.02, rel=0.05)] * 2
    assert intervals_in(results).against == "untouched"
    assert results.conditions[0].value("kl") == 0.0
