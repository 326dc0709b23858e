"""The arms that a comparison under a budget has by default, and why one cannot be added."""

from __future__ import annotations

import pytest

from subvene.specs import ExperimentSpec, RandomDirectionSpec, SpecError, parse_spec, points, variant
from subvene.specs.default_arms import with_default_arms

GOOD = """\
subvene: 1
model: {name: a/b}
fit: {recipe: mean_difference, key: glad, pairs: {file: p.yaml}}
interventions:
- {kind: steering, layer: 3, vector: {key: glad}, coefficient: 2, preserve_norm: true}
conditions:
- {name: small, sweep: {fit.tokens: [last, mean]}, choose: {by: kind_score, budget: {kl: 0.1, within: 0.02}}}
- {name: large, choose: {budget: {kl: 0.3}}}
- {name: baked, like: large, bake: true}
evaluate:
- {kind: trait_scores, traits: [{name: kind, file: kind.json}], validation: 2}
- {kind: divergence, validation: 10}
"""
OWN = """\
- {name: nothing, interventions: []}
- {name: asked, interventions: [], system: be kind}
"""


def experiment(text: str = GOOD) -> ExperimentSpec:
    spec = parse_spec(text)
    assert isinstance(spec, ExperimentSpec)
    return with_default_arms(spec, {"kind": "You are a kind assistant."})


def test_untouched_stands_first_then_the_files_conditions_then_random_ones_and_the_prompt() -> None:
    spec = experiment()
    names = [one.name for one in spec.conditions]
    assert names == ["untouched", "small", "large", "baked", "random_0_1", "random_0_3", "prompt"]
    by_name = {one.name: one for one in spec.conditions}
    assert by_name["prompt"].system == "You are a kind assistant."
    assert by_name["untouched"].interventions == by_name["prompt"].interventions == ()
    for name, kl in (("random_0_1", 0.1), ("random_0_3", 0.3)):
        choose = by_name[name].choose
        assert choose is not None
        assert choose.budget is not None
        assert choose.budget.kl == kl
        declared = variant(spec, by_name[name], {})
        assert declared is not None
        (edit,) = declared.interventions
        assert (edit.layer, edit.preserve_norm, edit.vector.key) == (3, True, "random")
    assert isinstance(spec.fits[1], RandomDirectionSpec)
    assert spec.fits[1].like == "glad"


def test_the_files_own_conditions_are_what_they_were() -> None:
    before = parse_spec(GOOD)
    assert isinstance(before, ExperimentSpec)
    after = experiment()
    for one in before.conditions:
        other = next(two for two in after.conditions if two.name == one.name)
        for point, same in zip(points(one), points(other), strict=True):
            a, b = variant(before, one, point), variant(after, other, same)
            assert a is not None
            assert b is not None
            assert [edit.vector for edit in a.interventions] == [edit.vector for edit in b.interventions]
            assert a.fits[0] == b.fits[0]


def test_what_a_file_has_is_not_added_and_nothing_is_where_it_says_so_or_has_no_budget() -> None:
    own = experiment(GOOD.replace("evaluate:\n", OWN + "evaluate:\n"))
    assert {one.name for one in own.conditions} >= {"nothing", "asked", "random_0_1"}
    assert not {one.name for one in own.conditions} & {"untouched", "prompt"}
    assert experiment() == with_default_arms(experiment(), {"kind": "again"})
    off = GOOD.replace("conditions:\n", "default_arms: false\nconditions:\n")
    assert [one.name for one in experiment(off).conditions] == ["small", "large", "baked"]
    plain = GOOD.replace(", budget: {kl: 0.1, within: 0.02}", "").replace(", choose: {budget: {kl: 0.3}}", "")
    assert [one.name for one in experiment(plain).conditions] == ["small", "large", "baked"]


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        (
            "- {kind: trait_scores, traits: [{name: kind, file: kind.json}], validation: 2}",
            "- {kind: contrast, pairs: {file: q.yaml}, validation: 2}",
            "conditions",
            "the prompt-only arm",
        ),
        (
            "kind: steering, layer: 3, vector: {key: glad}, coefficient: 2, preserve_norm: true",
            "kind: ablation, layer: 3, direction: {key: glad}",
            "conditions",
            "a `random_direction` at each `budget`",
        ),
        ("name: large", "name: untouched", "conditions[1].name", "an arm that is added has this one"),
        ("key: glad", "key: random", "interventions", "no intervention or fit called 'random'"),
    ],
)
def test_an_arm_that_cannot_be_added_is_an_error(old: str, new: str, place: str, words: str) -> None:
    text = GOOD.replace(old, new).replace(
        "like: large", "like: untouched" if "untouched" in new else "like: large"
    )
    with pytest.raises(SpecError) as caught:
        parse_spec(text.replace("kind_score", "contrast" if "contrast" in new else "kind_score"))
    assert place in str(caught.value)
    assert words in str(caught.value)
