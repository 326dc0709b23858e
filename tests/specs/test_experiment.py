from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from subvene.specs import (
    ContrastSpec,
    ContrastSystems,
    ContrastTexts,
    ExperimentSpec,
    LowRankEditSpec,
    MeanDifferenceSpec,
    ModelSpec,
    PairsFile,
    Problem,
    SamplesSpec,
    SpecError,
    load_pairs,
    parse_spec,
)

Problems = Callable[..., tuple[Problem, ...]]

GOOD = """\
subvene: 1
model: {name: a/b}
interventions:
- {kind: steering, layer: 3, vector: {key: v}, coefficient: 2}
fit:
  recipe: mean_difference
  key: v
  pairs:
    texts:
    - {prompt: hello, positive: on, negative: off}
evaluate:
- {kind: samples, prompts: [hi], coefficients: [0, 1]}
- {kind: contrast, pairs: {file: p.yaml}, coefficients: [0]}
seed: 3
output: runs/a
"""


def test_an_experiment_reads() -> None:
    spec = parse_spec(GOOD)
    assert isinstance(spec, ExperimentSpec)
    assert isinstance(spec.fit, MeanDifferenceSpec)
    assert isinstance(spec.fit.pairs, ContrastTexts)
    assert spec.fit.pairs.texts[0].positive == "on"
    assert (spec.fit.site, spec.fit.layers, spec.fit.tokens, spec.fit.batch_size) == (
        "block_output",
        "all",
        "mean",
        16,
    )
    assert [type(e) for e in spec.evaluate] == [SamplesSpec, ContrastSpec]
    assert isinstance(spec.evaluate[1], ContrastSpec)
    assert spec.evaluate[1].pairs == PairsFile(file="p.yaml")
    assert (spec.seed, spec.output) == (3, "runs/a")


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("key: v\n", "key: w\n", (4, 44, "interventions[0].vector.key")),
        ("recipe: mean_difference", "recipe: mean_diference", (6, 11, "fit.recipe")),
        ("recipe: mean_difference", "recpe: mean_difference", (6, 3, "fit.recpe")),
        ("  key: v\n", "", (6, 3, "fit.key")),
        ("texts:", "text:", (9, 5, "fit.pairs.text")),
        ("prompt: hello", "prompt: 3", (10, 16, "fit.pairs.texts[0].prompt")),
        ("negative: off", "negativ: off", (10, 37, "fit.pairs.texts[0].negativ")),
        ("negative: off", "negative: ''", (10, 47, "fit.pairs.texts[0].negative")),
        ("  key: v\n", "  key: v\n  layers: [1, 1]\n", (8, 11, "fit.layers")),
        ("prompts: [hi]", "prompts: []", (12, 28, "evaluate[0].prompts")),
        ("prompts: [hi]", "prompts: hi", (12, 28, "evaluate[0].prompts")),
        ("[0, 1]", "[0, 0.0]", (12, 48, "evaluate[0].coefficients")),
        ("[0, 1]", "[0, x]", (12, 52, "evaluate[0].coefficients[1]")),
        ("{file: p.yaml}", "{file: p.txt}", (13, 34, "evaluate[1].pairs.file")),
        ("{file: p.yaml}", "{systems: []}", (13, 27, "evaluate[1].pairs")),
        ("{file: p.yaml}", "p.yaml", (13, 27, "evaluate[1].pairs")),
        ("kind: contrast", "kind: contrst", (13, 10, "evaluate[1].kind")),
        ("seed: 3", "seed: -3", (14, 7, "seed")),
        ("seed: 3", "seed: 3.0", (14, 7, "seed")),
        ("output: runs/a", "output: ''", (15, 9, "output")),
    ],
)
def test_one_mistake_is_one_problem(
    problems_of: Problems, old: str, new: str, place: tuple[int, int, str]
) -> None:
    assert old in GOOD
    (problem,) = problems_of(GOOD.replace(old, new, 1))
    assert (problem.line, problem.column, problem.path) == place


def test_the_rules_about_tensors_hold_in_python_too() -> None:
    data = parse_spec(GOOD).model_dump(by_alias=True)
    assert ExperimentSpec.model_validate(data)
    with pytest.raises(ValidationError, match="has no `fit:`"):
        ExperimentSpec.model_validate({**data, "fit": None})


def test_references_are_listed_with_their_places() -> None:
    (found,) = parse_spec(GOOD).tensor_refs()
    assert found[0] == ("interventions", 0, "vector")
    assert found[1].key == "v"
    edit = LowRankEditSpec(layer=1, write_heads="all")
    spec = ExperimentSpec(subvene=1, model=ModelSpec(name="a"), interventions=(edit,))
    assert list(spec.tensor_refs()) == []


def test_pairs_in_a_file_are_those_written_out(tmp_path: Path) -> None:
    path = tmp_path / "pairs.yaml"
    path.write_text("texts:\n- {prompt: hello, positive: on, negative: off}\n")
    spec = parse_spec(GOOD)
    assert isinstance(spec, ExperimentSpec)
    assert spec.fit is not None
    assert load_pairs(path) == spec.fit.pairs
    path = tmp_path / "pairs.json"
    path.write_text('{"systems": [{"positive": "a", "negative": "b"}], "questions": ["q"]}')
    assert load_pairs(path) == ContrastSystems.model_validate(
        {"systems": [{"positive": "a", "negative": "b"}], "questions": ["q"]}
    )


@pytest.mark.parametrize(
    ("text", "places"),
    [
        (
            "texts:\n- positive: a\n  negativ: b\n- {positive: a}\n",
            [(3, 3, "texts[0].negativ"), (4, 3, "texts[1].negative")],
        ),
        ("systems:\n- {positive: a, negative: b}\n", [(1, 1, "questions")]),
        ("systms: []\nquestions: [q]", [(1, 1, "systms")]),
        ("file: other.yaml", [(1, 1, "")]),
        ("texts: [3]\nsystems: 1", [(1, 9, "texts[0]"), (2, 1, "systems")]),
    ],
)
def test_a_bad_file_of_pairs(tmp_path: Path, text: str, places: list[tuple[int, int, str]]) -> None:
    path = tmp_path / "pairs.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_pairs(path)
    assert [(p.line, p.column, p.path) for p in caught.value.problems] == places
    assert {p.file for p in caught.value.problems} == {str(path)}
