"""`fit("recipe", model, …)`: what keywords say is what a file with the same fields says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy
import pandas
import pytest
import torch

from subvene import fit
from subvene.runner import IntervenedModel
from subvene.specs import SpecError, SubveneError

PAIRS = [("i am very happy", "i am very gloomy"), ("the sun is good", "rain is bad")]
ROWS = [{"positive": positive, "negative": negative} for positive, negative in PAIRS]
PREFERENCES = [
    {"prompt": text, "chosen": "i am glad", "rejected": "sad"}
    for text in ("how are you", "hello world", "tell me", "the day", "the sun", "rain", "good", "train")
]


def steer(loaded: tuple[Any, Any], **fields: Any) -> IntervenedModel:
    return fit("mean_difference", *loaded, layer=1, coefficient=2.0, positions="response", **fields)


def same(one: IntervenedModel, other: IntervenedModel) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors
    )


def test_keywords_say_what_a_file_says(loaded: tuple[Any, Any], write: Callable[..., Path]) -> None:
    texts = json.dumps(ROWS)
    path = write(
        f"fit: {{recipe: mean_difference, key: k, tokens: last, pairs: {{texts: {texts}}}}}\n"
        "interventions: [{kind: steering, layer: 1, vector: {key: k}, coefficient: 2.0, positions: response}]"
    )
    of_file = fit(path, model=loaded[0], tokenizer=loaded[1])
    named = steer(loaded, key="k", tokens="last", pairs=PAIRS)
    assert same(of_file, named)
    assert named.generate("hello world", max_new_tokens=4) == of_file.generate(
        "hello world", max_new_tokens=4
    )


@pytest.mark.parametrize(
    "form", ["rows", "frame", "dataset", "columns", "jsonl", "csv", "data", "zip", "array"]
)
def test_pairs_in_every_form_are_the_same_pairs(form: str, loaded: tuple[Any, Any], tmp_path: Path) -> None:
    frame = pandas.DataFrame(ROWS)
    frame.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    forms: dict[str, Any] = {
        "rows": ROWS,
        "frame": frame,
        "dataset": datasets.Dataset.from_list(ROWS),
        "columns": frame.to_dict("list"),
        "jsonl": tmp_path / "rows.jsonl",
        "csv": str(tmp_path / "rows.csv"),
        "zip": zip(*zip(*PAIRS, strict=True), strict=True),
        "array": numpy.array(PAIRS),
    }
    given = {"data": PAIRS} if form == "data" else {"pairs": forms[form]}
    assert same(steer(loaded, **given), steer(loaded, pairs=PAIRS))


def test_a_model_by_its_name_is_loaded(model_folder: Path, loaded: tuple[Any, Any]) -> None:
    named = fit("mean_difference", model_folder, pairs=PAIRS, layer=1, coefficient=2.0, dtype="float32")
    assert same(named, steer(loaded, pairs=PAIRS))
    assert named.spec.model.name == str(model_folder)


def test_an_intervened_model_lends_its_model(loaded: tuple[Any, Any]) -> None:
    first = steer(loaded, pairs=PAIRS)
    again = fit("mean_difference", first, pairs=PAIRS, layer=1, coefficient=2.0)
    assert again.model is first.model
    assert same(first, again)


def test_another_kind_may_use_what_a_recipe_gives(loaded: tuple[Any, Any]) -> None:
    ablated = fit("mean_difference", *loaded, pairs=PAIRS, kind="ablation", layer=1)
    assert [one.kind for one in ablated.spec.interventions] == ["ablation"]
    two = [
        {"kind": "steering", "layer": layer, "vector": {"key": "mean_difference"}, "coefficient": 1.0}
        for layer in (0, 1)
    ]
    both = fit("mean_difference", *loaded, pairs=PAIRS, interventions=two)
    assert [getattr(one, "layer", None) for one in both.spec.interventions] == [0, 1]


def test_columns_of_other_names_are_said(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    rows = [{"good": pair[0], "bad": pair[1]} for pair in PAIRS]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    columns = {"positive": "good", "negative": "bad"}
    expected = steer(loaded, pairs=PAIRS)
    for pairs in (rows, pandas.DataFrame(rows), path, {"file": str(path)}):
        assert same(steer(loaded, pairs=pairs, columns=columns), expected)


def test_the_sources_that_interventions_name_are_declared_beside_them(loaded: tuple[Any, Any]) -> None:
    rows = [
        {
            "base": f"the {a} is",
            "source": f"the {b} is",
            "label": "good" if b in ("sun", "day") else "bad",
            "base_label": "good" if a in ("sun", "day") else "bad",
            "group": "first" if {a, b} & {"sun", "rain"} else "second",
        }
        for a, b in (("sun", "rain"), ("rain", "sun"), ("day", "train"), ("train", "day"))
    ]
    swap = {
        "kind": "pyvene",
        "class": "LowRankRotatedSpaceIntervention",
        "low_rank_dimension": 1,
        "site": "block_output",
        "layer": 1,
        "positions": {"last": 1},
        "source": {"from": "other", "positions": {"last": 1}},
        "state": {"key": "das.block_output[1].last"},
    }
    m = fit(
        "das",
        *loaded,
        data=rows,
        layers=[1],
        known=False,
        split={"by": ["group"]},
        positions={"last": {"last": 1}},
        interventions=[swap],
        sources={"other": {"column": "source", "chat": False}},
    )
    assert set(m.spec.sources) == {"other"}


def test_preferences_are_handed_over_as_rows(loaded: tuple[Any, Any]) -> None:
    heads = {"rule": "random", "k": 2}
    edit = fit("localized_edit", *loaded, data=PREFERENCES, heads=heads, learning_rate=0.01, epochs=1)
    assert [one.kind for one in edit.spec.interventions] == ["low_rank_edit"]


FITTED: dict[str, Any] = {"pairs": PAIRS, "layer": 1, "coefficient": 1.0}
REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "recipe": (("mean_diference",), {"pairs": PAIRS}, "did you mean mean_difference"),
    "field": (("mean_difference",), {"pairs": PAIRS, "layr": 1}, "'layr'; did you mean layer"),
    "kind": (("mean_difference",), {"pairs": PAIRS, "kind": "cappin"}, "did you mean capping"),
    "both": (("mean_difference",), {"pairs": PAIRS, "data": PAIRS, "layer": 1}, "say the same"),
    "triple": (("mean_difference",), {"pairs": [("a", "b", "c")]}, r"row 0: expected \(positive, negative\)"),
    "columns": (
        ("mean_difference",),
        {"pairs": PAIRS, "layer": 1, "columns": {"psitive": "good"}},
        "columns: expected a mapping from `positive`",
    ),
    "one column twice": (
        ("mean_difference",),
        {"pairs": PAIRS, "layer": 1, "columns": {"positive": "positive", "negative": "positive"}},
        r"row 0: column 'positive' is said to be two things, with `columns: \{positive: NAME\}` and",
    ),
    "a cell without text": (
        ("mean_difference",),
        {"pairs": [{"positive": "a", "negative": None}], "layer": 1},
        "row 0: negative: expected text, found null",
    ),
    "splits": (
        ("mean_difference",),
        FITTED | {"pairs": datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))},
        "data: holds several splits; hand over one of them: 'train'",
    ),
    "seed": (("mean_difference",), FITTED | {"seed": "x"}, "seed: expected an integer >= 0 .*, found 'x'"),
    "seed below 0": (("pca",), FITTED | {"seed": -1}, "seed: expected an integer >= 0 .*, found -1"),
    "no kind": (("das",), {"data": [{"base": "a"}]}, "pass interventions="),
    "late": (
        ("mean_difference",),
        {"pairs": PAIRS, "layer": 1, "coefficient": 1, "dtype": "bfloat16"},
        "dtype",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused(case: str, loaded: tuple[Any, Any]) -> None:
    args, fields, message = REFUSED[case]
    with pytest.raises((SubveneError, ValueError), match=message):
        fit(*args, *loaded, **fields)


def test_a_missing_field_is_named_without_a_line(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        fit("mean_difference", *loaded, pairs=PAIRS)
    assert [(one.path, one.line) for one in caught.value.problems] == [
        ("interventions[0].layer", None),
        ("interventions[0].coefficient", None),
    ]


def test_no_model_is_an_error_that_says_what_to_pass() -> None:
    with pytest.raises(SubveneError, match="pass the model"):
        fit("mean_difference", pairs=PAIRS, layer=1, coefficient=1.0)
