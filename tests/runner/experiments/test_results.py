"""Results: one type, written and read in one way, whatever the study."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from subvene.runner import Results
from subvene.runner.cli.validate import results_schema_text
from subvene.runner.experiments.look.section import (
    SECTION,
    LookSection,
    conditions_of,
    item_of,
    look_of,
    standard_error,
)
from subvene.runner.experiments.results import (
    Choice,
    Condition,
    FitRecord,
    Item,
    JudgeRecord,
    Metric,
    QuestionText,
    Record,
    ResultsError,
    Tried,
    missing_verdicts,
    results_schema,
)
from subvene.specs import SubveneError

WHOLE = Results(
    kind="comparison",
    manifest={"spec": "x", "data": {"fit": {"questions": 3}}},
    conditions=(
        Condition(
            name="iti",
            label="iti strength=5",
            point={"iti.strength": 5, "iti.positions": {"first": 3}},
            seed=1,
            fold=0,
            metrics={"mc1": Metric(mean=0.5, n=4), "kl": Metric(mean=0.0, sd=0.1, low=-1.0, high=1.0, n=2)},
            counts={"questions": 4},
            receipts={"generation": [{"name": "iti", "edited": {"prompt": 0}}]},
            items=(Item(key="a", text="", scores={"true": True, "true_p": 0.75}, missing={"info": "down"}),),
            artifact="artifacts/iti",
        ),
        Condition(name="iti", label="iti strength=9", seed=1, fold=0, not_finite="too strong"),
    ),
    choices=(
        Choice(
            condition="iti", metric="mc1", tried=(Tried(point={"s": 1}, value=0.5, n=2),), chosen={"s": 1}
        ),
    ),
    fits=(FitRecord(condition="iti", provenance={"heads": {"1": [2, 3]}}),),
    judges=(JudgeRecord(about={"kind": "reference"}, usage={"requests": 3}),),
    questions={"a": QuestionText(question="why?", best=None)},
    notes=("read this",),
    sections={"own": {"layers": [1, 2], "share": 0.5}},
)
FORMAT_1: dict[str, Any] = {
    "evaluations": [
        {
            "kind": "samples",
            "records": [
                {"prompt": prompt, "coefficient": c, "response": f"{prompt} {c}" if c < 9 else None}
                | ({"not_finite": "too strong"} if c == 9 else {})
                for prompt in ("hello", "why")
                for c in (-1.0, 0.0, 9.0)
            ],
            "receipt": [{"name": "glad", "edited": {"prompt": 0}}],
        },
        {
            "kind": "contrast",
            "records": [
                {"coefficient": 0, "mean_difference": 0.5, "standard_error": 0.5, "positive_preferred": 0.5},
                {
                    "coefficient": 9.0,
                    "mean_difference": None,
                    "standard_error": None,
                    "positive_preferred": None,
                    "not_finite": "too strong",
                },
            ],
            "pairs": [[1.0, 0.0], None],
            "tokens_edited": 12,
        },
    ],
    "provenance": {"recipe": "mean_difference"},
    "reload_max_logit_difference": 0.25,
    "environment": {"python": "3.11"},
    "files_relative_to": "/home",
}


class Own(Record):
    """A study's own part."""

    layers: tuple[int, ...]
    share: float


def test_what_is_saved_is_loaded_from_the_folder_and_from_the_file(tmp_path: Path) -> None:
    path = WHOLE.save(tmp_path)
    assert path == tmp_path / "results.json"
    assert Results.load(tmp_path) == Results.load(path) == Results.load(str(path)) == WHOLE
    assert Results.of(json.loads(WHOLE.to_json())) == WHOLE
    assert Results.load(tmp_path).to_json() == WHOLE.to_json()
    document = json.loads(path.read_text("utf-8"))
    assert (document["format"], document["kind"]) == (2, "comparison")
    # What is at its default says nothing.
    assert "artifact" not in document["conditions"][1]


@given(
    mean=st.floats(allow_nan=False, allow_infinity=False),
    text=st.text(st.characters(exclude_categories=["Cs"])),
    n=st.integers(0, 10**6),
)
def test_every_number_and_text_comes_back(mean: float, text: str, n: int) -> None:
    condition = Condition(
        name=text,
        label=text,
        metrics={text: Metric(mean=mean, n=n)},
        items=(Item(key=text, text=text, scores={text: mean}),),
    )
    results = Results(kind="look", conditions=(condition,), notes=(text,))
    assert Results.of(json.loads(results.to_json())) == results


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_is_not_finite(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Metric(mean=value, n=1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read as the results of a run"),
        ("[" * 100_000, "cannot be read as the results of a run"),
        ("[]", "these are no results of `subvene run`"),
        ("{}", "these are no results of `subvene run`"),
        ('{"format": 3, "kind": "look"}', "format: Input should be 2"),
        ('{"format": 2}', "kind: Field required"),
        ('{"format": 2, "kind": "look", "more": 1}', "more: Extra inputs are not permitted"),
        (
            '{"format": 2, "kind": "look", "conditions": [{"name": "a", "label": "a", '
            '"metrics": {"mc1": {"mean": NaN, "n": 1}}}]}',
            "conditions.0.metrics.mc1.mean: Input should be a finite number",
        ),
        ('{"evaluations": [{"kind": "contrast", "records": [{"coefficient": 7}]}]}', "these are no results"),
        ('{"cells": [{"condition": "a"}]}', "these are no results"),
    ],
)
def test_what_are_no_results_is_refused_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ResultsError) as caught:
        Results.load(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(SubveneError, match=r"results\.json: cannot be read as the results of a run"):
        Results.load(tmp_path)


def test_a_section_is_of_its_own_type() -> None:
    assert WHOLE.section("own", Own) == Own(layers=(1, 2), share=0.5)
    assert WHOLE.section("other", Own) is None
    spoilt = WHOLE.model_copy(update={"sections": {"own": {"layers": [1], "share": "many"}}})
    with pytest.raises(ResultsError, match=r"sections\.own\.share: Input should be a valid number"):
        spoilt.section("own", Own)


def test_a_data_frame_has_a_row_for_each_condition() -> None:
    frame = WHOLE.to_pandas()
    assert list(frame["label"]) == ["iti strength=5", "iti strength=9"]
    assert list(frame["seed"]) == [1, 1]
    first, second = frame.to_dict("records")
    assert (first["mc1"], first["kl"], first["questions"], first["iti.strength"]) == (0.5, 0.0, 4, 5)
    assert math.isnan(second["mc1"])


def test_missing_verdicts_are_counted_by_their_reason() -> None:
    assert missing_verdicts(WHOLE.conditions) == {"down": 1}
    assert [condition.missing for condition in WHOLE.conditions] == [1, 0]


# Format 1 -------------------------------------------------------------------------------------------------


def test_a_plain_run_of_format_1_is_a_look(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(FORMAT_1))
    results = Results.load(tmp_path)
    assert results.kind == "look"
    assert [condition.label for condition in results.conditions] == ["-1", "0 (baseline)", "+9"]
    section = look_of(results)
    assert section.reload_difference == 0.25
    samples, contrast = section.evaluations
    assert [results.questions[key].question for key in samples.keys] == ["hello", "why"]
    for key, prompt in zip(samples.keys, ("hello", "why"), strict=True):
        items = [item_of(condition, key) for condition in conditions_of(results, samples)]
        assert [item.text for item in items if item is not None] == [f"{prompt} -1.0", f"{prompt} 0.0", None]
    zero, nine = conditions_of(results, contrast)
    assert zero.metrics["contrast"].mean == 0.5
    assert standard_error(zero.metrics["contrast"]) == pytest.approx(0.5)
    assert zero.value("contrast_preferred") == 0.5
    assert [item.scores["contrast"] for item in zero.items if item.key in contrast.keys] == [1.0, 0.0]
    assert (nine.metrics, nine.not_finite) == ({}, "too strong")
    assert contrast.tokens_edited == 12
    assert results.fits[0].provenance == {"recipe": "mean_difference"}
    assert results.manifest == {"environment": {"python": "3.11"}, "files_relative_to": "/home"}
    # From then on it is what any other is.
    results.save(tmp_path)
    assert Results.load(tmp_path) == results


def test_a_look_has_a_section_of_its_type() -> None:
    results = Results.of(FORMAT_1)
    assert results.section(SECTION, LookSection) == look_of(results)


# The schema -----------------------------------------------------------------------------------------------


def test_the_schema_is_up_to_date() -> None:
    kept = (ROOT / "docs" / "results.schema.json").read_text("utf-8")
    assert kept == results_schema_text(), "run: subvene schema --results -o docs/results.schema.json"


def test_the_schema_says_what_it_is_and_leaves_nothing_open() -> None:
    schema = results_schema()
    assert set(schema["properties"]) == set(Results.model_fields)
    assert set(schema["required"]) == {"format", "kind"}
    records = [part for name, part in schema["$defs"].items() if name != "JsonValue"]
    assert all(part["additionalProperties"] is False for part in [schema, *records])
