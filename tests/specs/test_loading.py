"""What is said about a bad file: where, what, and what was meant."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from subvene.specs import (
    ExperimentSpec,
    InterventionSpec,
    Problem,
    SpecError,
    SubveneError,
    load_spec,
    parse_spec,
)

Problems = Callable[..., tuple[Problem, ...]]

GOOD = """\
subvene: 1
model: {name: a/b}
interventions:
- kind: steering
  layer: 3
  vector: {file: v.safetensors, key: v}
  coefficient: 2
"""


def test_every_problem_of_a_file_at_once(problems_of: Problems) -> None:
    text = """\
# a comment
subvene: 2
modle: {name: a}
interventions:
- kind: steering
  layr: 3
  vector: {file: x.safetensor, key: a b}
  coefficient: .inf
  positions: promt
- kind: sterring
- kind: capping
  layer: -1
  direction: {key: v}
  max: "1"
- 5
"""
    found = [(p.line, p.column, p.path, p.found, p.hint) for p in problems_of(text, file="f.yaml")]
    assert found == [
        (2, 10, "subvene", "2", None),
        (3, 1, "modle", "'modle'", "model"),
        (6, 3, "interventions[0].layr", "'layr'", "layer"),
        (7, 18, "interventions[0].vector.file", "'x.safetensor'", None),
        (7, 37, "interventions[0].vector.key", "'a b'", None),
        (8, 16, "interventions[0].coefficient", "inf", None),
        (9, 14, "interventions[0].positions", "'promt'", "prompt"),
        (10, 9, "interventions[1].kind", "'sterring'", "steering"),
        (12, 10, "interventions[2].layer", "-1", None),
        (14, 8, "interventions[2].max", "'1'", None),
        (15, 3, "interventions[3]", "5", None),
    ]


def test_the_message_has_one_problem_a_line() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(GOOD.replace("layer: 3", "layer: -1").replace("steering", "steerin"), "f.yaml")
    assert str(caught.value) == (
        "f.yaml:4:9: interventions[0].kind: expected one of: ablation, affine, capping, head_direction, "
        "low_rank_edit, noise, pyvene, rotation, sae_feature, scaling, steering, found 'steerin'; "
        "did you mean 'steering'?"
    )
    with pytest.raises(SpecError) as caught:
        parse_spec(GOOD.replace("layer: 3", "layer: -1").replace("a/b", "7"), "f.yaml")
    assert str(caught.value).splitlines() == [
        "f.yaml:2:15: model.name: expected a hub id, a local folder, or package:<module>/<file>.gguf, "
        "found 7",
        "f.yaml:5:10: interventions[0].layer: expected an integer >= 0, found -1",
    ]
    assert isinstance(caught.value, SubveneError)
    assert isinstance(caught.value, ValueError)
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


@pytest.mark.parametrize(
    ("old", "new", "place", "hint"),
    [
        ("layer: 3", "layr: 3", (5, 3, "interventions[0].layr"), "layer"),
        ("kind: steering", "knd: steering", (4, 3, "interventions[0].knd"), "kind"),
        ("key: v}", "kye: v}", (6, 33, "interventions[0].vector.kye"), "key"),
        ("coefficient: 2", "strength: 2", (7, 3, "interventions[0].strength"), "coefficient"),
        ("vector:", "direction:", (6, 3, "interventions[0].direction"), "vector"),
        ("interventions:", "intervention:", (3, 1, "intervention"), "interventions"),
        ("name:", "nmae:", (2, 9, "model.nmae"), "name"),
        ("kind: steering", "kind: Steering", (4, 9, "interventions[0].kind"), "steering"),
        ("layer: 3", "layer: 3\n  site: mlp_ouput", (6, 9, "interventions[0].site"), "mlp_output"),
        (
            "layer: 3",
            "layer: 3\n  positions: {frist: 2}",
            (6, 15, "interventions[0].positions.frist"),
            "first",
        ),
        ("a/b}", "a/b, dtype: bflot16}", (2, 27, "model.dtype"), "bfloat16"),
    ],
)
def test_a_misspelling_is_one_problem_with_a_hint(
    problems_of: Problems, old: str, new: str, place: tuple[int, int, str], hint: str
) -> None:
    assert old in GOOD
    (problem,) = problems_of(GOOD.replace(old, new, 1))
    assert (problem.line, problem.column, problem.path) == place
    assert problem.hint == hint


@pytest.mark.parametrize("top", ["evalute: []", "evaluat:\n- {kind: samples}", "fitt: {}", "ouput: x"])
def test_a_misspelt_field_of_an_experiment_is_seen_as_one(problems_of: Problems, top: str) -> None:
    (problem,) = problems_of(GOOD + top)
    assert (problem.line, problem.column) == (8, 1)
    assert problem.hint in ("evaluate", "fit", "output")


def test_a_foreign_name_gets_no_hint(problems_of: Problems) -> None:
    (problem,) = problems_of(GOOD + "zzzz: 1")
    assert (problem.path, problem.hint, problem.expected) == (
        "zzzz",
        None,
        "one of: subvene, model, sources, interventions",
    )


def test_a_missing_field_points_at_its_mapping(problems_of: Problems) -> None:
    (problem,) = problems_of(GOOD.replace("  layer: 3\n", ""))
    assert problem == Problem("<string>", 4, 3, "interventions[0].layer", "an integer >= 0", "nothing")
    (problem,) = problems_of(GOOD.replace("{name: a/b}", "{}"))
    assert (problem.line, problem.column, problem.path) == (2, 8, "model.name")
    (problem,) = problems_of("# c\n\n" + GOOD.replace("subvene: 1\n", ""))
    assert (problem.line, problem.column, problem.path) == (3, 1, "subvene")


@pytest.mark.parametrize("version", ["2", "true", "1.0", "'1'", "null"])
def test_another_format_version_is_refused(problems_of: Problems, version: str) -> None:
    (problem,) = problems_of(GOOD.replace("subvene: 1", f"subvene: {version}"))
    assert (problem.line, problem.column, problem.expected) == (1, 10, "the format version 1")


def test_a_long_value_is_shortened(problems_of: Problems) -> None:
    (problem,) = problems_of(GOOD.replace("layer: 3", "layer: " + "x" * 500))
    assert len(problem.found) <= 60
    assert problem.found.endswith("…")


def test_an_error_in_a_merged_mapping_points_at_where_the_value_stands(spoilt: Problems) -> None:
    problems = spoilt(
        "- &base",
        "  kind: steering",
        "  layer: 3",
        "  vector: {file: v.safetensors, key: v}",
        "  coefficient: 2",
        "- <<: *base",
        "  layer: [4]",
        "- kind: ablation",
        "  layer: 5",
        "  direction: {file: v.safetensors, key: v}",
        "  <<: &more {strength: high}",
    )
    assert [(p.line, p.column, p.path) for p in problems] == [
        (10, 10, "interventions[1].layer"),
        (14, 24, "interventions[2].strength"),
    ]


def test_a_merged_mapping_reads_as_if_written_out() -> None:
    spec = parse_spec(GOOD.replace("- kind", "- &s\n  kind") + "- <<: *s\n  layer: 4\n  coefficient: 1e-4\n")
    first, second = spec.interventions
    assert second == first.model_copy(update={"layer": 4, "coefficient": 1e-4})


def test_json_errors_have_the_same_places(problems_of: Problems) -> None:
    text = '{\n\t"subvene": 1,\n\t"model": {"name": 3},\n\t"interventions": [{"kind": "steerin"}]\n}'
    assert [(p.line, p.column, p.path, p.hint) for p in problems_of(text, format="json")] == [
        (3, 20, "model.name", None),
        (4, 29, "interventions[0].kind", "steering"),
    ]


def test_which_of_the_two_kinds_a_file_is() -> None:
    assert type(parse_spec(GOOD)) is InterventionSpec
    for field in ("seed: 3", "output: runs/a", "evaluate: []", "fit:"):
        assert type(parse_spec(GOOD + field)) is ExperimentSpec


def test_a_tensor_without_a_file_needs_a_source(problems_of: Problems) -> None:
    text = GOOD.replace("file: v.safetensors, ", "")
    (problem,) = problems_of(text)
    assert (problem.line, problem.column, problem.path) == (6, 11, "interventions[0].vector.file")
    (problem,) = problems_of(text + "seed: 1")
    assert (problem.line, problem.column, problem.path) == (6, 11, "interventions[0].vector.file")
    assert parse_spec(text, own_tensors=True).interventions[0].kind == "steering"


@pytest.mark.parametrize(
    "file",
    [
        "/etc/v.safetensors",
        "../v.safetensors",
        "a/../../v.safetensors",
        "C:\\v.safetensors",
        "..\\v.safetensors",
    ],
)
def test_an_artifact_names_no_file_outside_its_folder(problems_of: Problems, file: str) -> None:
    text = GOOD.replace("v.safetensors", f"'{file}'")
    (problem,) = problems_of(text, own_tensors=True)
    assert (problem.line, problem.column, problem.path) == (6, 18, "interventions[0].vector.file")
    assert parse_spec(text)  # a spec of one's own may


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(GOOD)
    assert load_spec(path) == load_spec(str(path)) == parse_spec(GOOD)
    path.write_text(GOOD.replace("layer: 3", "layer: x"))
    with pytest.raises(SpecError, match=rf"^{path}:5:10: interventions\[0\]\.layer: "):
        load_spec(path)
    with pytest.raises(SpecError, match="expected a readable file"):
        load_spec(tmp_path / "none.yaml")
    path.write_text(GOOD.replace("file: v.safetensors, ", ""))
    assert load_spec(path, own_tensors=True)


def test_an_unknown_format_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="yaml or json"):
        parse_spec(GOOD, format="toml")  # type: ignore[arg-type]


def test_problems_print_without_what_is_missing() -> None:
    assert str(Problem("f", None, None, "", "a", "b")) == "f: expected a, found b"
    assert str(Problem("f", 1, 2, "x", "a", "b", "c")) == "f:1:2: x: expected a, found b; did you mean 'c'?"


@pytest.mark.parametrize("wrong", [101, 3000])
def test_the_number_of_problems_is_bounded(problems_of: Problems, wrong: int) -> None:
    text = GOOD.replace("coefficient: 2", "coefficient: [" + "a, " * wrong + "1]")
    problems = problems_of(text)
    assert [p.path for p in problems[:-1]] == [f"interventions[0].coefficient[{i}]" for i in range(100)]
    assert (problems[-1].expected, problems[-1].found) == ("at most 100 problems in a file", "more than that")
    assert len(problems_of(GOOD.replace("coefficient: 2", f"coefficient: [{'a, ' * 100}1]"))) == 100
