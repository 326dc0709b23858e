"""The tables and the page of a look: the numbers of its results, and texts that stay texts."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pytest

from subvene.runner.experiments.look.section import SECTION, Evaluation, LookSection
from subvene.runner.experiments.results import (
    Condition,
    FitRecord,
    Item,
    Metric,
    QuestionText,
    Results,
)
from subvene.runner.reports.look import contrast_line, look_files, render

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>|a"
RECEIPT: dict[str, Any] = {
    "name": "glad",
    "sites": ["block_output[1]"],
    "rows": 4,
    "rows_edited": 2,
    "edited": {"prompt": 0, "cursor": 2, "response": 10},
    "mean_relative": 0.5,
    "max_relative": 0.75,
    "mean_strength": None,
    "strengths": [-2.0, 0.0, 2.0],
}


def look(section: LookSection | None = None, coefficients: tuple[float, ...] = (-2.0, 0.0, 2.0)) -> Results:
    evaluations = (
        Evaluation(
            kind="samples", name="samples", coefficients=coefficients, keys=("a", "b"), receipt=(RECEIPT,)
        ),
        Evaluation(
            kind="contrast", name="contrast", coefficients=coefficients, keys=("c", "d"), tokens_edited=64
        ),
    )
    conditions = tuple(
        Condition(
            name="intervened",
            label=f"{c:+g}",
            point={"glad.coefficient": c},
            metrics={
                "contrast": Metric(mean=c / 4, sd=2**0.5, n=2),
                "contrast_preferred": Metric(mean=0.5, n=2),
            },
            items=(
                Item(key="a", text=f"answer {c} {HOSTILE}"),
                Item(key="b", text=""),
                Item(key="c", scores={"contrast": c}),
                Item(key="d", scores={"contrast": -c / 2}),
            ),
        )
        for c in coefficients
    )
    own = (section or LookSection(dtype="float32", reload_difference=0.0)).model_copy(
        update={"evaluations": evaluations}
    )
    return Results(
        kind="look",
        conditions=conditions,
        fits=(FitRecord(condition="intervened", provenance={"recipe": "mean_difference", "note": HOSTILE}),),
        questions={key: QuestionText(question=f"{HOSTILE} {key}", best=HOSTILE) for key in "abcd"},
        manifest={"spec": "model: {name: org/tiny}\n", "command": ["subvene", "run"]},
        sections={SECTION: own.model_dump(mode="json")},
    )


def lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_tables_hold_the_numbers() -> None:
    files = look_files(look())
    assert sorted(files) == ["pairs.csv", "results.csv", "results.md", "results.tex", "samples.csv"]
    found = [
        (float(x["coefficient"]), float(x["mean_difference"]), float(x["standard_error"]), x["pairs"])
        for x in lines(files["results.csv"])
    ]
    assert found == [(c, c / 4, pytest.approx(1.0), "2") for c in (-2.0, 0.0, 2.0)]
    assert [float(x["difference"]) for x in lines(files["pairs.csv"])] == [-2, 1, 0, 0, 2, -1]
    written = [(x["prompt"], float(x["coefficient"]), x["response"]) for x in lines(files["samples.csv"])]
    assert written[:3] == [(f"{HOSTILE} a", c, f"answer {c} {HOSTILE}") for c in (-2.0, 0.0, 2.0)]
    assert "| −2 | −0.5 | 1 | 0.5 |" in files["results.md"]
    assert "- 2 pairs, 64 tokens edited" in files["results.md"]


def test_openings_of_gates_are_a_table_of_their_own() -> None:
    gate = {
        "rows_asked": 6,
        "tokens_asked": 1440,
        "rows_opened": 5,
        "tokens_opened": 1200,
        "gates": [
            {"place": "when", "must_open": False, "rows": 5, "tokens": 1200},
            {"place": "when.any[0]", "must_open": False, "rows": 2, "tokens": 480},
        ],
    }
    results = look()
    section = LookSection.model_validate(results.sections[SECTION])
    samples = section.evaluations[0].model_copy(update={"receipt": (RECEIPT | {"gate": gate},)})
    section = section.model_copy(update={"evaluations": (samples, *section.evaluations[1:])})
    gated = results.model_copy(update={"sections": {SECTION: section.model_dump(mode="json")}})
    table = look_files(gated)["gates.md"]
    assert "| samples | glad | when | 5 of 6 | 1,200 of 1,440 |" in table
    assert "| samples | glad | when.any[0] | 2 of 6 | 480 of 1,440 |" in table
    assert "How often each gate opened" in str(render(gated))


def test_the_page_shows_answers_beside_each_other_and_a_line() -> None:
    page = render(look())
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Preference",
        "Samples",
        "Receipts",
        "Artifact",
        "Provenance",
        "Downloads",
    ]
    assert page.count("<article>") == 2
    assert [f"answer {c}" in page for c in (-2.0, 0.0, 2.0)] == [True] * 3
    assert "(empty)" in page
    (drawn,) = re.findall(r'<script type="application/json">(.*?)</script>', page)
    trace = json.loads(drawn)["data"][0]
    assert (trace["x"], trace["y"]) == ([-2, 0, 2], [-0.5, 0, 0.5])
    assert trace["error_y"]["array"] == pytest.approx([1.0] * 3)
    assert "10 response" in page
    assert "gave the same logits" in page
    assert render(Results.of(json.loads(look().to_json()))) == page


def test_hostile_text_is_inert() -> None:
    page = render(look())
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(2)&gt;" in page


def test_one_coefficient_is_no_line() -> None:
    results = look(coefficients=(2.0,))
    assert contrast_line(results_evaluation(results), results.conditions) is None
    assert '<div class="plot"' not in render(results)


def results_evaluation(results: Results) -> Evaluation:
    section = results.section(SECTION, LookSection)
    assert section is not None
    return section.evaluations[1]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (LookSection(reload_difference=2e-6), "differ by up to 2e-06"),
        (LookSection(), "they are not finite"),
        (LookSection(reload_failure="out of <memory>"), "could load it: out of &lt;memory&gt;"),
    ],
)
def test_the_page_says_how_it_reloaded(section: LookSection, said: str) -> None:
    assert said in render(look(section))
