"""Somebody replicates a table: conditions over seeds and folds, a control, intervals, nothing done twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from tiny_questions import QUESTIONS, write_questions

from subvene import Results

SPEC = """\
subvene: 1
model: {name: model, dtype: float32}
fit: {recipe: iti, key: truthful, data: {file: questions.csv}, select: {rule: top_k, k: 2}, ranking_folds: 2}
interventions:
- {kind: head_direction, name: iti, directions: {key: truthful}, strength: 5, positions: response}
conditions:
- {name: baseline, interventions: []}
- {name: iti}
- {name: random_heads, set: {fit.select.rule: random}}
seeds: [1, 2]
folds: 2
evaluate:
- {kind: truthfulqa, data: {file: questions.csv}, measure: [multiple_choice]}
- {kind: divergence, limit: 2, max_tokens: 16}
"""


def test_a_table_with_its_control_and_intervals(typed: Callable[..., str], desk: Path) -> None:
    write_questions(desk / "questions.csv", QUESTIONS)
    Path("iti.yaml").write_text(SPEC, "utf-8")
    assert "smallest p" in typed("subvene power --draws 9 --questions 100").replace("\n", " ")
    assert typed("subvene validate iti.yaml") == "iti.yaml: ok\n"
    first = typed("subvene run iti.yaml -o out")
    assert "random_heads" in first
    intervals = pd.read_csv("out/tables/intervals.csv")
    assert {"iti", "random_heads"} <= set(intervals[intervals.difference.notna()].label)

    # The same again does nothing; another strength leaves the fits alone.
    units = Path("out/units.jsonl").read_text("utf-8")
    typed("subvene run iti.yaml -o out")
    assert Path("out/units.jsonl").read_text("utf-8") == units
    Path("iti.yaml").write_text(SPEC.replace("strength: 5", "strength: 8"), "utf-8")
    typed("subvene run iti.yaml -o out")
    fits = [line for line in Path("out/units.jsonl").read_text("utf-8").splitlines() if '"fit' in line[:200]]
    assert len(fits) == sum('"fit' in line[:200] for line in units.splitlines())

    results = Results.load("out")
    table = results.to_pandas()
    assert {"mc1", "mc2", "kl"} <= set(table.columns)
    assert len(table[table.label == "iti"]) == 4  # two seeds in two folds
    assert Path("out/tables/results.tex").is_file()
