"""The arms that a file asks for: which heads, which points, which learning rates."""

from __future__ import annotations

from typing import Any

import pytest

from subvene.interventions import Sizes
from subvene.runner.edits.compile import CompileError
from subvene.runner.experiments.localization.plan import edits_of, plan
from subvene.runner.recipes.localized_heads import choose_heads
from subvene.specs import ExperimentSpec, ITISpec, LocalizedEditSpec
from subvene.specs.recipes.trained import IPOSpec

SIZES = Sizes(n_layers=4, n_heads=4, head_dim=8, width=32)


def spec_of(**asked: Any) -> ExperimentSpec:
    return ExperimentSpec.model_validate(
        {
            "subvene": 1,
            "model": {"name": "m"},
            "fit": {
                "recipe": "localized_edit",
                "key": "e",
                "data": {"truthfulqa": {}},
                "heads": {"rule": "probed", "k": 3, "validation": 0.25},
                "learning_rate": 5e-4,
            },
            "interventions": [{"kind": "low_rank_edit", "name": "edit", "factors": {"key": "e"}}],
            "evaluate": [{"kind": "localization", "random": 3, "single": 5} | asked, {"kind": "truthfulqa"}],
            "seed": 2,
        }
    )


def test_every_arm_in_the_order_of_the_table() -> None:
    groups = [arm.group for arm in plan(spec_of(), SIZES)]
    assert groups == [
        "iti_probed",
        *["iti_random"] * 3,
        "edit_probed",
        *["edit_random"] * 3,
        *["edit_single"] * 5,
        "edit_all",
        "lora",
    ]
    assert [arm.name for arm in plan(spec_of(arms=["edit_all", "iti_random"]), SIZES)] == [
        "edit_all",
        "iti_random_1",
        "iti_random_2",
        "iti_random_3",
    ]


def heads(recipe: Any) -> dict[int, tuple[int, ...]]:
    return choose_heads(recipe, SIZES, 2)


def test_draws_differ_and_iti_has_the_same() -> None:
    arms = {arm.name: arm for arm in plan(spec_of(), SIZES)}
    drawn = [heads(arms[f"edit_random_{i}"].candidates[0].recipe) for i in (1, 2, 3)]
    assert len({str(one) for one in drawn}) == 3
    assert all(sum(map(len, one.values())) == 3 for one in drawn)
    for i in (1, 2, 3):
        iti = arms[f"iti_random_{i}"].candidates[0].recipe
        edit = arms[f"edit_random_{i}"].candidates[0].recipe
        assert isinstance(iti, ITISpec)
        assert isinstance(edit, LocalizedEditSpec)
        assert iti.select.model_dump() == edit.heads.model_dump()
        assert iti.validation == 0.25
    other = spec_of().model_copy(update={"seed": 3})
    again = {arm.name: arm for arm in plan(other, SIZES)}
    assert heads(again["edit_random_1"].candidates[0].recipe) not in drawn


def test_matched_draws_have_as_many_heads_of_each_layer() -> None:
    like = {0: (1,), 2: (0, 3)}
    groups = ["iti_probed", "iti_matched", "edit_probed", "edit_matched"]
    asked = spec_of(arms=groups, random=200, random_iti=300)
    arms = [arm for arm in plan(asked, SIZES, like) if "matched" in arm.name]
    assert [sum(arm.group == group for arm in arms) for group in ("iti_matched", "edit_matched")] == [
        300,
        200,
    ]
    drawn = [heads(arm.candidates[0].recipe) for arm in arms if arm.group == "edit_matched"]
    assert {tuple((layer, len(of)) for layer, of in one.items()) for one in drawn} == {((0, 1), (2, 2))}
    # All 4 × 6 sets come up, the probed one among them, about as often.
    counts = [sum(one == other for other in drawn) for one in drawn]
    assert len({str(one) for one in drawn}) == 24
    assert like in drawn
    assert max(counts) < 25
    for one, other in zip(arms, arms[300:], strict=False):
        mine, theirs = one.candidates[0].recipe, other.candidates[0].recipe
        assert isinstance(mine, ITISpec)
        assert isinstance(theirs, LocalizedEditSpec)
        assert mine.select.model_dump() == theirs.heads.model_dump()
    # While the probed heads are not known, as many arms stand for them.
    assert [arm.name for arm in plan(asked, SIZES) if "matched" in arm.name] == [arm.name for arm in arms]


def test_the_mean_is_tried_beside_the_sum_and_trained_more_strongly() -> None:
    asked = {"tau": [0.1, 0.5], "mean": {"learning_rate_factor": 3, "epochs": 7}, "learning_rate_all": 2e-4}
    arms = {arm.name: arm for arm in plan(spec_of(**asked), SIZES)}
    for name, rate in (("edit_probed", 5e-4), ("edit_all", 2e-4), ("lora", 2e-4)):
        found = []
        for one in arms[name].candidates:
            assert isinstance(one.recipe, LocalizedEditSpec)
            objective = one.recipe.objective
            assert isinstance(objective, IPOSpec)
            found.append((objective.tau, objective.reduction, one.recipe.learning_rate, one.recipe.epochs))
        assert found == [
            (0.1, "sum", rate, 2),
            (0.5, "sum", rate, 2),
            (0.1, "mean", pytest.approx(3 * rate), 7),
            (0.5, "mean", pytest.approx(3 * rate), 7),
        ]
    assert len({str(one.point) for one in arms["lora"].candidates}) == 4


def test_more_draws_keep_the_first_ones() -> None:
    few, many = (plan(spec_of(random=n, single=n), SIZES) for n in (2, 5))
    names = {arm.name: arm for arm in many}
    for arm in few:
        assert [c.recipe for c in names[arm.name].candidates] == [c.recipe for c in arm.candidates]


def test_single_heads_are_different_heads() -> None:
    singles = [arm for arm in plan(spec_of(single=16), SIZES) if arm.group == "edit_single"]
    chosen = [str(heads(arm.candidates[0].recipe)) for arm in singles]
    assert len(set(chosen)) == 16


def test_points_and_learning_rates() -> None:
    asked = {"tau": [0.1, 0.5], "iti": {"strengths": [1, 2, 4]}, "learning_rate_all": 3e-5}
    arms = {arm.name: arm for arm in plan(spec_of(**asked), SIZES)}
    assert [c.point for c in arms["iti_probed"].candidates] == [
        {"strength": 1},
        {"strength": 2},
        {"strength": 4},
    ]
    assert [c.point for c in arms["edit_probed"].candidates] == [{"tau": 0.1}, {"tau": 0.5}]
    rates = {
        name: {
            c.recipe.learning_rate for c in arms[name].candidates if isinstance(c.recipe, LocalizedEditSpec)
        }
        for name in ("edit_probed", "edit_random_1", "edit_single_1", "edit_all", "lora")
    }
    assert rates == {
        "edit_probed": {5e-4},
        "edit_random_1": {5e-4},
        "edit_single_1": {2e-3},
        "edit_all": {3e-5},
        "lora": {3e-5},
    }
    # Every strength of ITI is one fit, and a LoRA is no edit.
    assert len(edits_of(list(arms.values()))) == 2 * (1 + 3 + 5 + 1)


def test_more_single_heads_than_there_are() -> None:
    with pytest.raises(CompileError, match=r"evaluate\[0\]\.single: expected at most 16.*found 17"):
        plan(spec_of(single=17), SIZES)
