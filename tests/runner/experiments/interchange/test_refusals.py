"""Interchanges whose numbers would say nothing are refused, with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from known_mechanism import known_rows, write_known_model

from subvene.runner import run_experiment
from subvene.specs import SubveneError, parse_spec

CELL: dict[str, Any] = {
    "kind": "pyvene",
    "name": "das",
    "class": "LowRankRotatedSpaceIntervention",
    "low_rank_dimension": 1,
    "site": "block_output",
    "layer": 0,
    "positions": {"field": "name"},
    "source": {"from": "other", "positions": {"field": "other"}},
    "state": {"key": "das.block_output[0].name"},
}
FIT: dict[str, Any] = {
    "recipe": "das",
    "key": "das",
    "data": {"file": "rows.jsonl"},
    "split": {"by": ["name", "other"], "test": 0.4},
    "layers": [0],
    "positions": {
        "name": {"base": {"field": "name"}, "source": {"field": "other"}},
        "last": "last_prompt_token",
    },
    "epochs": 1,
}


def experiment(model: str, fit: dict[str, Any], *cells: dict[str, Any]) -> str:
    declared = {"subvene": 1, "model": {"name": model, "dtype": "float32"}, "fit": FIT | fit}
    if cells:
        declared |= {"sources": {"other": {"column": "source", "chat": False}}, "interventions": list(cells)}
    return yaml.safe_dump(declared | {"evaluate": [{"kind": "interchange"}]}, sort_keys=False)


def unlabelled(row: dict[str, str], **changes: str) -> dict[str, str]:
    return {
        name: value for name, value in row.items() if name not in ("base_label", "source_label")
    } | changes


@pytest.mark.parametrize(
    ("change", "fit", "message"),
    [
        (
            lambda row: unlabelled(row, label=f"he {row['label']}"),
            {},
            r":2: label: 'he he' begins with the same token as 'he she' \(.*:1\)",
        ),
        (
            lambda row: unlabelled(row, base_lable="he"),
            {},
            r":1: the column 'base_lable' is read by nobody; if it is meant as 'base_label', rename it",
        ),
        (lambda row: unlabelled(row, label="she"), {}, "interchange: every answer in the data is 'she'"),
        (lambda row: row | {"label": "zoo"}, {}, r":1: label: 'zoo' begins with what .* not know \(<unk>\)"),
        (
            lambda row: row,
            {"positions": {"far": {"base": {"indices": [7]}, "source": {"last": 1}, "pair": "first"}}},
            "row 0: no token of the base matches 'far'",
        ),
        (
            lambda row: row,
            {"positions": {"far": {"base": {"indices": [7]}, "source": {"last": 1}, "pair": "broadcast"}}},
            "row 0: no token of the base matches 'far'",
        ),
    ],
)
def test_what_would_measure_nothing(
    change: Callable[[dict[str, str]], dict[str, str]],
    fit: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SUBVENE_CACHE", str(tmp_path / "cache"))
    write_known_model(tmp_path / "model")
    rows = [json.dumps(change(row)) + "\n" for row in known_rows()]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    (tmp_path / "exp.yaml").write_text(experiment(str(tmp_path / "model"), fit))
    with pytest.raises(SubveneError, match=message):
        run_experiment(tmp_path / "exp.yaml", output=tmp_path / "run")


def test_a_row_that_stands_twice(tmp_path: Path) -> None:
    write_known_model(tmp_path / "model")
    rows = [json.dumps(row) + "\n" for row in known_rows()]
    (tmp_path / "rows.jsonl").write_text("".join([*rows, rows[2]]))
    (tmp_path / "exp.yaml").write_text(experiment(str(tmp_path / "model"), {}))
    with pytest.raises(SubveneError, match=rf":{len(rows) + 1}: has the base, source and label of .*:3;"):
        run_experiment(tmp_path / "exp.yaml", output=tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "path", "expected"),
    [
        ({"positions": {"last": 1}}, "positions", '{"field": "name"}'),
        ({"source": {"from": "other"}}, "source.positions", '{"field": "other"}'),
        ({"source": CELL["source"] | {"layer": 1}}, "source.layer", "0"),
        ({"source": CELL["source"] | {"site": "mlp_output", "layer": 0}}, "source.site", "'block_output'"),
        ({"source": CELL["source"] | {"component": "block_input"}}, "source.component", "nothing"),
        ({"source": CELL["source"] | {"pair": "first"}}, "source.pair", "'equal'"),
    ],
)
def test_an_artifact_that_is_no_cell_of_the_grid(change: dict[str, Any], path: str, expected: str) -> None:
    with pytest.raises(SubveneError) as caught:
        parse_spec(experiment("a/b", {}, CELL | change))
    (problem,) = caught.value.problems  # type: ignore[attr-defined]
    assert problem.path == f"interventions[0].{path}"
    assert problem.expected == f"{expected}, as the cell das.block_output[0].name was trained"


@pytest.mark.parametrize(
    ("source", "data", "path", "expected"),
    [
        ({"column": "origin", "chat": False}, {}, "column", "'source'"),
        ({"column": "source", "chat": False}, {"source": "origin"}, "column", "'origin'"),
        ({"column": "source", "chat": True}, {}, "chat", "false"),
    ],
)
def test_an_artifact_whose_rows_give_another_input(
    source: dict[str, Any], data: dict[str, Any], path: str, expected: str
) -> None:
    text = experiment("a/b", {"data": FIT["data"] | data}, CELL)
    declared = yaml.safe_load(text) | {"sources": {"other": source}}
    with pytest.raises(SubveneError) as caught:
        parse_spec(yaml.safe_dump(declared))
    (problem,) = caught.value.problems  # type: ignore[attr-defined]
    assert problem.path == f"sources.other.{path}"
    assert problem.expected == f"{expected}, as the cell das.block_output[0].name was trained"


def test_another_rule_for_the_same_tokens_is_that_cell() -> None:
    same = {"state": {"key": "das.block_output[0].last"}, "source": {"from": "other"}}
    for rule in ({"last": 1}, {"indices": [-1]}, "last_prompt_token"):
        parse_spec(experiment("a/b", {}, CELL | same | {"positions": rule}))
