"""A student has thirty pairs of own sentences, knows Hugging Face, and has never seen subvene."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import torch

from subvene import IntervenedModel, SubveneError, fit

WHO = ["i am", "you are", "the day is", "the rain is", "it is", "the train is"]
HOW = [
    ("glad", "sad"),
    ("good", "bad"),
    ("happy", "gloomy"),
    ("very glad", "very sad"),
    ("very good", "very bad"),
]
PAIRS = [(f"{who} {good}", f"{who} {bad}") for who in WHO for good, bad in HOW]
ROWS = [{"positive": good, "negative": bad} for good, bad in PAIRS]

FORMS: dict[str, Callable[[], Any]] = {
    "tuples": lambda: PAIRS,
    "rows": lambda: ROWS,
    "a DataFrame": lambda: pd.DataFrame(ROWS),
    "a Dataset": lambda: datasets.Dataset.from_list(ROWS),
    "JSONL": lambda: _written("pairs.jsonl", "\n".join(map(json.dumps, ROWS))),
    "CSV": lambda: _written("pairs.csv", pd.DataFrame(ROWS).to_csv(index=False)),
    "preference rows": lambda: [{"chosen": good, "rejected": bad} for good, bad in PAIRS],
    "other columns": lambda: {
        "file": _other_columns(),
        "columns": {"positive": "happy", "negative": "gloomy"},
    },
}


def _written(name: str, text: str) -> str:
    Path(name).write_text(text, "utf-8")
    return name


def _other_columns() -> str:
    table = pd.DataFrame(PAIRS, columns=["happy", "gloomy"])
    return _written("diary.csv", table.to_csv(index=False))


@pytest.mark.parametrize("form", FORMS)
def test_five_lines_take_pairs_as_people_have_them(form: str, desk: Path) -> None:
    m = fit("mean_difference", "model", pairs=FORMS[form](), key="glad", layer=1, coefficient=2.0)
    by_tuples = fit("mean_difference", "model", pairs=PAIRS, key="glad", layer=1, coefficient=2.0)
    assert torch.equal(m.tensors["glad.block_output[1]"], by_tuples.tensors["glad.block_output[1]"])
    assert m.generate("how are you ?", max_new_tokens=4)
    assert m.receipt["glad"].edited["prompt"] > 0


def test_columns_that_are_not_known_are_told_with_what_is_wanted(desk: Path) -> None:
    with pytest.raises(SubveneError) as told:
        fit("mean_difference", "model", pairs={"file": _other_columns()}, layer=1, coefficient=2.0)
    message = str(told.value)
    assert '{"positive": "…", "negative": "…"}' in message
    assert PAIRS[0][0] in message
    assert PAIRS[1][0] in message


def test_from_a_table_to_an_answer_by_commands(typed: Callable[..., str]) -> None:
    assert "mine/steer.yaml" in typed("subvene init steer mine --model model").replace("\n", "")
    # The student's own table in the place of the data beside the file, and numbers of a smaller model.
    _other_columns()
    spec = Path("mine/own.yaml")
    spec.write_text(
        """\
subvene: 1
model: {name: model, dtype: float32}
fit:
  recipe: mean_difference
  key: glad
  pairs: {file: ../diary.csv, columns: {positive: happy, negative: gloomy}}
interventions:
- {kind: steering, name: glad, layer: 1, vector: {key: glad}, coefficient: 2, positions: response}
evaluate:
- {kind: samples, prompts: [how are you ?], coefficients: [-1, 0, 1], max_new_tokens: 4}
""",
        "utf-8",
    )
    assert typed("subvene validate mine/own.yaml") == "mine/own.yaml: ok\n"
    assert "reloaded" in typed("subvene run mine/own.yaml -o out")
    assert Path("out/report.html").stat().st_size < 2_000_000
    assert "glad" in typed("subvene show out/artifact -p 'how are you ?'")
    assert "edited" in typed("subvene generate out/artifact -p 'how are you ?' --max-new-tokens 4 --compare")
    again = IntervenedModel.from_pretrained("out/artifact")
    assert again.generate("how are you ?", strengths=[0.0], max_new_tokens=4)


def test_a_slip_in_the_file_is_told_with_its_line(typed: Callable[..., str]) -> None:
    Path("slip.yaml").write_text(
        "subvene: 1\nmodel: {name: model}\ninterventions:\n"
        "- {kind: steering, layer: 1, vector: {file: v.safetensors, key: v}, coeficient: 2}\n",
        "utf-8",
    )
    said = typed("subvene validate slip.yaml", code=1).replace("\n", " ")
    assert "slip.yaml:4" in said
    assert "coefficient" in said
