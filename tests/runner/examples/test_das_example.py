"""The results page of the alignment search: its table of the raw results, and a cell by plain hooks."""

from __future__ import annotations

import gzip
import json
import re
from typing import Any

import pytest
import safetensors.torch
from checkout import EXAMPLES, ROOT
from interchange_by_hand import (
    answered_by_hand,
    difference_by_hand,
    swapped_by_hand,
    token_of,
    wilson_by_hand,
)
from markdown_tables import tables_in
from tracing_by_hand import states_by_hand

PAGE = ROOT / "docs" / "results" / "das-smollm2.md"
RAW = ROOT / "docs" / "results" / "das-smollm2"
LAYER = 24
# A place, the word that it is the last token of in base and source, and every how many-th row is tried.
PLACES = (("because", "because", "because", 3), ("name", "name", "other", 8))
Cell = dict[str, Any]


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    return _loaded("results.json.gz")


def _loaded(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(gzip.decompress((RAW / name).read_bytes()))
    return loaded


@pytest.fixture(scope="module")
def cells(run: dict[str, Any]) -> dict[tuple[str, int], Cell]:
    grid = run["sections"]["interchange"]["grids"][0]
    return {
        (cell["measured"]["place"], cell["measured"]["layer"]): cell["measured"] for cell in grid["cells"]
    }


def test_the_page_says_what_the_rows_say(cells: dict[tuple[str, int], Cell]) -> None:
    lines = _table("tokens")
    assert {(line[0], int(line[1])) for line in lines} == set(cells)
    for place, layer, *said in lines:
        _check(said, cells[place, int(layer)])


def test_the_page_says_what_names_in_front_do() -> None:
    grids = _loaded("first-token-results.json.gz")["sections"]["interchange"]["grids"]
    lines = _table("texts")
    assert [(line[0], int(line[1])) for line in lines] == [(grid["key"], len(grid["rows"])) for grid in grids]
    for (_, _, *said), grid in zip(lines, grids, strict=True):
        _check(said, grid["cells"][0]["measured"])


def _table(first: str) -> list[list[str]]:
    table = next(table for table in tables_in(PAGE.read_text("utf-8")) if table.columns[0].head == first)
    return [[str(cell).strip("`") for cell in row] for row in table.rows]


def _check(said: list[str], cell: Cell) -> None:
    """A line of the page: the trained subspace, its controls, and the differences from two of them."""
    das, whole, random, shuffled, probe, over_whole, over_shuffled = said
    right = cell["right"]
    assert _numbers(das) == pytest.approx(wilson_by_hand(right["das"]), abs=0.0051)
    for text, arm in ((whole, "whole"), (random, "random"), (shuffled, "shuffled")):
        assert _numbers(text) == pytest.approx([sum(right[arm]) / len(right[arm])], abs=0.0051)
    assert _numbers(probe) == pytest.approx([sum(cell["probe"]) / len(cell["probe"])], abs=0.0051)
    for text, arm in ((over_whole, "whole"), (over_shuffled, "shuffled")):
        # Another bootstrap than the run's, so that ends differ by its noise: two in the last digit.
        assert _numbers(text) == pytest.approx(difference_by_hand(right["das"], right[arm]), abs=0.021)
    assert ("†" in das) == (_numbers(over_whole)[1] > 0)


@pytest.mark.long
@pytest.mark.slow
def test_a_trained_cell_does_by_plain_hooks_what_its_row_says(
    run: dict[str, Any], cells: dict[tuple[str, int], Cell], smollm2: tuple[Any, Any]
) -> None:
    """The stored rotation, whole passes, row by row; which rows are held out is found anew, too."""
    model, tokenizer = smollm2
    data = [json.loads(line) for line in (EXAMPLES / "data" / "gender.jsonl").read_text("utf-8").splitlines()]
    ids = {text: tokenizer(text)["input_ids"] for row in data for text in (row["base"], row["source"])}
    answers = [tokenizer(f" {word}")["input_ids"][0] for word in ("he", "she")]
    said: dict[str, int] = {}

    def knows(text: str, label: str) -> bool:
        if text not in said:
            said[text] = answered_by_hand(model, ids[text], answers)
        return said[text] == answers[label == "she"]

    out = run["fits"][0]["provenance"]["held_out_values"]
    held = [row for row in data if row["group"] in out]
    rows = [r for r in held if knows(r["base"], r["base_label"]) and knows(r["source"], r["source_label"])]
    questions = [
        run["questions"][key]["question"] for key in run["sections"]["interchange"]["grids"][0]["rows"]
    ]
    assert [f"{row['base']} ← {row['source']}" for row in rows] == questions

    rotations = safetensors.torch.load_file(RAW / "rotations.safetensors")
    states: dict[str, Any] = {}
    for place, own, other, step in PLACES:
        rotation = rotations[f"gender.block_output[{LAYER}].{place}.rotation"]
        right: dict[str, list[float]] = {"das": [], "whole": []}
        for row in rows[::step]:
            source = row["source"]
            if source not in states:
                states[source] = states_by_hand(model, ids[source], ["block_output"])["block_output", LAYER]
            at = token_of(tokenizer, row["base"], row.get(own, own))
            read = states[source][token_of(tokenizer, source, row.get(other, other))]
            for arm, matrix in (("das", rotation), ("whole", None)):
                answer = swapped_by_hand(model, ids[row["base"]], at, read, LAYER, matrix, answers)
                right[arm].append(float(answer == answers[row["label"] == "she"]))
        for arm, found in right.items():
            assert found == cells[place, LAYER]["right"][arm][::step], f"{arm} at {place}"


def _numbers(text: str) -> list[float]:
    return [float(number.replace("−", "-")) for number in re.findall(r"[-−]?\d+\.\d+", text.split("(")[0])]
