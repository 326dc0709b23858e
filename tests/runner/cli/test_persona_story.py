"""What `subvene run` prints when a persona experiment has ended."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from subvene.runner.cli._persona import PersonaStory
from subvene.runner.experiments.results import Results


@pytest.fixture
def results() -> Results:
    condition = {"group": "early", "counts": {"responses": 4, "refused": 0, "missing": 0}}
    extraction = {
        "pairs": 6,
        "kept": 5,
        "dropped": {"empty": 1},
        "mean_score": dict.fromkeys(("positive", "negative")),
    }
    trait = {
        "extraction": extraction,
        "vectors": [],
        "steering": {"layer": 2, "unit": "residual_norm", "positions": "response"},
    }
    return Results.of(
        {
            "format": 2,
            "kind": "persona",
            "conditions": [
                condition
                | {
                    "name": "steered",
                    "label": "steered",
                    "metrics": {"score": {"mean": 61.31, "sd": 1.5, "n": 4}, "kl": {"mean": 0.2784, "n": 2}},
                    "details": {"kind": "steered"},
                },
                condition
                | {"name": "two", "label": "two 1e+30", "not_finite": "inf", "details": {"kind": "steered"}},
            ],
            "choices": [
                {
                    "condition": "early",
                    "metric": "score",
                    "tried": [],
                    "chosen": {"layer": 2, "coefficient": 1.5},
                }
            ],
            "notes": ["early: two 1e+30: not finite: inf"],
            "sections": {"persona": {"traits": {"early": trait}}},
        }
    )


def test_what_was_kept_chosen_and_measured_is_told(results: Results) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=120)
    PersonaStory(console, console).step("finished", results)
    said = stream.getvalue()
    assert "5 of 6 pairs of responses kept (dropped: empty 1)" in said
    assert "chosen by score: layer 2, coefficient 1.5 (residual_norm)" in said
    cells = [[cell.strip() for cell in line.split("│")] for line in said.splitlines()]
    # Without the columns of the coefficient and of refusals.
    lines = [[line[0], *line[2:8], line[9]] for line in cells if len(line) == 10]
    assert ["steered", "61.3", "–", "–", "–", "0.278", "–", "4"] in lines
    assert ["", "± 1.5", *[""] * 6] in lines
    assert ["two 1e+30", "not finite", "–", "–", "–", "–", "–", "4"] in lines
    assert "warning: early: two 1e+30: not finite: inf" in said
