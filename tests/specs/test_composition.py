"""Compositions: the conditions that they stand for, and what is wrong with those that stand for none."""

from __future__ import annotations

import pytest

from subvene.specs import (
    ExperimentSpec,
    SpecError,
    composition,
    dump_spec,
    parse_spec,
    points,
    variant,
)

GOOD = """\
subvene: 1
model: {name: a/b}
interventions:
- {kind: steering, name: a, layer: 3, vector: {file: v.safetensors, key: v}, coefficient: 2}
- {kind: ablation, name: b, layer: 3, direction: {file: v.safetensors, key: w}}
- {kind: steering, layer: 3, vector: {file: v.safetensors, key: u}, coefficient: 1}
evaluate:
- {kind: divergence}
- {kind: composition, of: [a, b]}
seeds: [1, 2]
"""


def experiment(text: str = GOOD) -> ExperimentSpec:
    spec = parse_spec(text)
    assert isinstance(spec, ExperimentSpec)
    return spec


def test_it_reads_back_as_it_was_written() -> None:
    assert parse_spec(dump_spec(experiment())) == experiment()
    assert parse_spec(dump_spec(experiment(), "json"), format="json") == experiment()


def test_two_are_measured_alone_and_in_both_orders() -> None:
    planned = composition(experiment())
    assert planned is not None
    assert planned.names == ("a", "b")
    assert planned.orders == {"a_then_b": ("a", "b"), "b_then_a": ("b", "a")}
    assert [(c.name, c.interventions) for c in planned.conditions] == [
        ("baseline", ()),
        ("a", ("a",)),
        ("b", ("b",)),
        ("a_then_b", ("a", "b")),
        ("b_then_a", ("b", "a")),
    ]


def test_all_three_of_a_file_have_six_orders() -> None:
    planned = composition(experiment(GOOD.replace(", of: [a, b]", ", seeds: [2]")))
    assert planned is not None
    assert planned.names == ("a", "b", "steering_2")
    assert len(planned.orders) == 6
    assert len(set(planned.orders.values())) == 6
    assert planned.orders["steering_2_then_a_then_b"] == ("steering_2", "a", "b")
    assert {c.seeds for c in planned.conditions} == {(2,)}


def test_a_variant_acts_in_the_order_of_its_condition() -> None:
    spec = experiment(GOOD.replace(", of: [a, b]", ""))
    planned = composition(spec)
    assert planned is not None
    for condition in planned.conditions:
        (point,) = points(condition)
        found = variant(spec, condition, point)
        if found is None:
            assert condition.name == "baseline"
            continue
        # In the file's order a place still names what has no name.
        assert tuple(i.name or "steering_2" for i in found.interventions) == condition.interventions
        assert [e.kind for e in found.evaluate] == ["divergence"]


def test_without_an_entry_there_is_no_composition() -> None:
    assert composition(experiment(GOOD.replace("- {kind: composition, of: [a, b]}\n", ""))) is None


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("of: [a, b]", "of: [a]", "evaluate[1].of", "a list of 2 or 3 different names"),
        ("of: [a, b]", "of: [a, a]", "evaluate[1].of", "a list of 2 or 3 different names"),
        ("of: [a, b]", "of: [a, b, steering_2, d]", "evaluate[1].of", "a list of 2 or 3 different names"),
        ("of: [a, b]", "of: a", "evaluate[1].of", "a list of 2 or 3 different names"),
        ("of: [a, b]", "of: [a, steering_1]", "evaluate[1].of[1]", "did you mean 'steering_2'"),
        ("of: [a, b]", "off: [a, b]", "evaluate[1].off", "did you mean 'of'"),
        ("of: [a, b]", "of: [a, b], seeds: [3]", "evaluate[1].seeds", "seeds of the experiment: 1, 2"),
        ("name: a,", "name: baseline,", "interventions[0].name", "another name than 'baseline'"),
        ("- {kind: divergence}\n", "", "evaluate[0]", "another entry beside it"),
        (
            "seeds: [1, 2]",
            "conditions: [{name: x}]",
            "conditions",
            "nothing, since `evaluate` has a composition",
        ),
        ("evaluate:\n", "evaluate:\n- {kind: composition}\n", "evaluate[2]", "one entry of this kind"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(old: str, new: str, place: str, words: str) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new)
    if new == "name: baseline,":
        text = text.replace("of: [a, b]", "of: [baseline, b]")
    with pytest.raises(SpecError) as caught:
        parse_spec(text)
    said = str(caught.value)
    assert place in said
    assert words in said


def test_one_intervention_cannot_be_composed() -> None:
    lines = GOOD.splitlines(True)
    text = "".join(lines[:4] + lines[6:]).replace(", of: [a, b]", "")
    with pytest.raises(SpecError) as caught:
        parse_spec(text)
    assert "interventions" in str(caught.value)
    assert "2 or 3 interventions" in str(caught.value)


def test_four_must_be_named() -> None:
    fourth = "- {kind: ablation, layer: 3, direction: {file: v.safetensors, key: w}}\n"
    text = GOOD.replace("evaluate:\n", fourth + "evaluate:\n").replace(", of: [a, b]", "")
    with pytest.raises(SpecError, match="the names of 2 or 3 interventions, since this file has 4"):
        parse_spec(text)
    assert (
        composition(experiment(text.replace("composition", "composition, of: [b, ablation_3]"))) is not None
    )


def test_a_condition_s_own_order_is_kept() -> None:
    text = GOOD.replace("- {kind: composition, of: [a, b]}\n", "") + (
        "conditions:\n- {name: turned, interventions: [steering_2, a]}\n- {name: whole}\n"
    )
    spec = experiment(text)
    found = [variant(spec, condition, {}) for condition in spec.conditions]
    assert [[i.name for i in v.interventions] for v in found if v is not None] == [
        ["steering_2", "a"],
        ["a", "b", None],
    ]
