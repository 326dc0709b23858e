"""Conditions: what each stands for, and what is wrong with those that stand for nothing."""

from __future__ import annotations

from typing import Any

import pytest

from subvene.specs import ExperimentSpec, ITISpec, SpecError, dump_spec, parse_spec, points, variant

GOOD = """\
subvene: 1
model: {name: a/b}
fit: {recipe: iti, key: t}
interventions:
- {kind: head_direction, name: iti, directions: {key: t}, strength: 15, positions: response}
- {kind: steering, layer: 3, vector: {file: v.safetensors, key: v}, coefficient: 2}
conditions:
- {name: baseline, interventions: []}
- {name: iti, interventions: [iti]}
- {name: best, interventions: [iti], sweep: {fit.select.k: [4, 8], iti.strength: [5, 10]}, choose: {by: mc2}}
- {name: baked, like: best, set: {iti.positions: all}, bake: true}
- {name: strong, set: {iti.strength: 20, steering_1.coefficient: 3}, seeds: [2]}
evaluate:
- {kind: truthfulqa}
- {kind: divergence, seeds: [1]}
seeds: [1, 2]
folds: 2
"""


def experiment(text: str = GOOD) -> ExperimentSpec:
    spec = parse_spec(text)
    assert isinstance(spec, ExperimentSpec)
    return spec


def of(spec: ExperimentSpec, name: str, point: dict[str, Any] | None = None, **inherited: Any) -> Any:
    condition = next(c for c in spec.conditions if c.name == name)
    return variant(spec, condition, point or {}, inherited)


def test_conditions_read_back_as_they_were_written() -> None:
    assert parse_spec(dump_spec(experiment())) == experiment()
    assert parse_spec(dump_spec(experiment(), "json"), format="json") == experiment()


def test_no_interventions_are_the_untouched_model() -> None:
    assert of(experiment(), "baseline") is None


def test_named_interventions_act_alone() -> None:
    found = of(experiment(), "iti")
    assert [i.kind for i in found.interventions] == ["head_direction"]
    assert found.conditions == ()


def test_a_grid_has_a_point_for_each_pair_and_sets_its_fields() -> None:
    spec = experiment()
    grid = points(spec.conditions[2])
    assert grid == [{"fit.select.k": k, "iti.strength": alpha} for k in (4, 8) for alpha in (5, 10)]
    found = of(spec, "best", grid[1])
    assert isinstance(found.fit, ITISpec)
    assert (found.fit.select.k, found.interventions[0].strength) == (4, 10.0)


def test_a_condition_starts_from_another_with_what_was_chosen_for_it() -> None:
    found = of(experiment(), "baked", best={"fit.select.k": 8, "iti.strength": 5})
    (edit,) = found.interventions
    assert (edit.strength, edit.positions, found.fit.select.k) == (5.0, "all", 8)


def test_set_reaches_an_intervention_without_a_name() -> None:
    found = of(experiment(), "strong")
    assert [i.strength for i in found.interventions] == [20.0, 3.0]


def test_the_file_itself_is_never_changed() -> None:
    spec = experiment()
    before = dump_spec(spec)
    for condition in spec.conditions:
        for point in points(condition):
            variant(spec, condition, point)
    assert dump_spec(spec) == before


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        (
            "iti.strength: [5, 10]",
            "iti.strengt: [5]",
            "conditions[2].sweep.iti.strengt[0]",
            "strengt: one of",
        ),
        ("iti.strength: [5, 10]", "iti.strength: [5, a]", "iti.strength[1]", "a finite number"),
        ("iti.strength: [5, 10]", "iti.strength: []", "iti.strength", "a non-empty list"),
        ("iti.positions: all", "itti.positions: all", "conditions[3].set", "did you mean 'iti'"),
        ("iti.positions: all", "iti.positions: never", "conditions[3].set", "'response'"),
        ("iti.positions: all", "iti: all", "conditions[3].set", "a path such as `iti.FIELD`"),
        ("like: best", "like: bset", "conditions[3].like", "did you mean 'best'"),
        ("like: best", "like: strong", "conditions[3].like", "one of: baseline, iti, best"),
        ("interventions: []", "interventions: [it]", "conditions[0].interventions[0]", "did you mean 'iti'"),
        ("name: baked", "name: best", "conditions[3].name", "a name of its own"),
        (", choose: {by: mc2}", "", "conditions[3].like", "without `sweep`, or with `choose`"),
        ("choose: {by: mc2}", "choose: {by: mc4}", "conditions[2].choose.by", "mc2"),
        ("seeds: [2]}", "seeds: [3]}", "conditions[4].seeds", "seeds of the experiment: 1, 2"),
        ("{kind: divergence, seeds: [1]}", "{kind: divergence, seeds: [7]}", "evaluate[1].seeds", "1, 2"),
        ("folds: 2", "folds: 1", "folds", "from 2 to 100"),
        ("folds: 2", "folds: 2\nseed: 3", "seeds", "either `seed` or `seeds`"),
        ("recipe: iti, key: t", "recipe: mean_difference, key: t, pairs: {file: p.yaml}", "folds", "nothing"),
        (
            "- {kind: truthfulqa}",
            "- {kind: samples, coefficients: [1], prompts: [a]}",
            "evaluate[0]",
            "compares",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(old: str, new: str, place: str, words: str) -> None:
    assert old in GOOD
    with pytest.raises(SpecError) as caught:
        parse_spec(GOOD.replace(old, new))
    said = str(caught.value)
    assert place in said
    assert words in said


def test_a_sweep_may_start_from_a_condition_only_where_that_one_is_measured() -> None:
    text = GOOD.replace("choose: {by: mc2}}", "choose: {by: mc2}, seeds: [1]}")
    with pytest.raises(SpecError, match="only seeds of 'best'"):
        parse_spec(text)


def test_conditions_need_an_evaluation_that_compares_them() -> None:
    text = GOOD.replace(
        "- {kind: truthfulqa}\n- {kind: divergence, seeds: [1]}\n",
        "- {kind: samples, coefficients: [1], prompts: [a]}\n",
    )
    with pytest.raises(SpecError, match="no entry of `evaluate` compares conditions"):
        parse_spec(text)
