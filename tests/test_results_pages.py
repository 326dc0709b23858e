"""What the results pages say is what their raw results say; and what checks it sees when it is not so."""

from __future__ import annotations

import gzip
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checkout import ROOT

from subvene.runner.experiments.results import Condition, Item, Metric, QuestionText, Results

PAGES = ROOT / "docs" / "results"


sys.path.insert(0, str(ROOT / "docs"))
gallery = SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "gallery.py"), run_name="gallery"))
recompute = SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "recompute.py"), run_name="recompute"))
WITH_RAW = [page for page in sorted(PAGES.glob("*.md")) if (page.with_suffix("") / recompute.RAW).is_file()]


@pytest.mark.parametrize("page", WITH_RAW, ids=lambda page: page.stem)
def test_a_page_says_what_its_raw_results_say(page: Path) -> None:
    assert list(recompute.problems(page, recompute.raw(page))) == []


def test_every_raw_results_have_a_report_that_its_page_and_the_index_link() -> None:
    made = gallery.reports()
    raw = {path.relative_to(PAGES) for path in PAGES.glob("*/*results.json.gz")}
    assert raw
    assert len(made) == len(raw)
    index = gallery.with_reports("results/index.md", (PAGES / "index.md").read_text("utf-8"))
    for path, report in made.items():
        assert report.count("<section") > 2
        assert len(report) < 2_000_000
        assert 'href="tables/' not in report  # nothing lies beside it in the site
        page = Path(path).parent.name
        link = f"]({page}/{Path(path).name})"
        assert link in index
        assert link in gallery.with_reports(f"results/{page}.md", (PAGES / f"{page}.md").read_text("utf-8"))


def test_a_link_to_what_the_site_leaves_out_leads_into_the_repository() -> None:
    config: Any = SimpleNamespace(repo_url="https://example.org/x")
    page: Any = SimpleNamespace(file=SimpleNamespace(src_uri="results-format.md"))
    markdown = (ROOT / "docs" / "results-format.md").read_text("utf-8")
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"), run_name="hooks")
    shown = hooks["on_page_markdown"](markdown, page, config, None)
    assert "(https://example.org/x/blob/main/docs/results.schema.json)" in shown


def test_a_page_without_raw_results_says_what_keeps_it_from_a_report() -> None:
    shown = gallery.with_reports("results/iti-smollm2.md", "# A page\n\nWords.\n")
    assert "this run's raw results were not kept" in shown
    assert shown.endswith("\n\nWords.\n")


def test_a_question_whose_text_was_not_kept_is_called_by_its_key(tmp_path: Path) -> None:
    path = tmp_path / recompute.RAW
    path.write_bytes(gzip.compress(RESULTS.model_copy(update={"questions": {}}).to_json().encode()))
    again = recompute.read_raw(path)
    assert set(again.questions) == {"0", "1", "2", "3", "4"}
    assert again.questions["3"].question == "(question 3: its text is not kept here)"


def _condition(name: str, *scores: float) -> Condition:
    return Condition(
        name=name,
        label=name,
        metrics={"contrast": Metric(mean=sum(scores) / len(scores), n=len(scores))},
        items=tuple(Item(key=str(i), scores={"contrast": score}) for i, score in enumerate(scores)),
    )


RESULTS = Results(
    kind="comparison",
    manifest={"spec": "subvene: 1"},
    conditions=(
        _condition("baseline", 10.0, 12.0, 11.0, 13.0, 9.0),
        _condition("steered", 50.0, 53.0, 50.0, 54.0, 48.0),
        _condition("prompted", 9.0, 14.0, 11.0, 12.0, 10.0),
    ),
)
GOOD = """# A page

<!-- results.md where condition=steered: from the raw results -->
<!-- end -->

- **Steered scores more** (+40.0 [+39.2, +40.8]). <!-- shown: steered/contrast up -->
- Prompted: nothing is shown. <!-- not shown: prompted/contrast -->
"""


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("", "", None),
        (
            "| steered | 51.000",
            "| steered | 52.000",
            "a table is not the one",
        ),
        ("steered/contrast up", "steered/contrast down", "is not shown"),
        ("shown: prompted/contrast", "shown: steered/contrast", "is shown"),
        ("not shown: prompted/contrast", "shown: prompted/contrast up", "is not shown"),
        ("+40.0 [+39.2, +40.8]", "+45.0 [+39.2, +40.8]", "does not give"),
        ("steered/contrast up", "steering/contrast up", "there is no such difference"),
    ],
)
def test_a_claim_or_a_table_that_is_not_so_is_found(
    old: str, new: str, problem: str | None, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(recompute.with_tables(GOOD, RESULTS).replace(old, new))
    assert old in recompute.with_tables(GOOD, RESULTS)
    found = list(recompute.problems(page, RESULTS))
    assert (found == []) if problem is None else any(problem in line for line in found), found


def test_a_stored_mean_that_is_not_of_its_items_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("x")
    wrong = RESULTS.conditions[1].model_copy(update={"metrics": {"contrast": Metric(mean=60.0, n=5)}})
    results = RESULTS.model_copy(update={"conditions": (RESULTS.conditions[0], wrong)})
    assert list(recompute.problems(page, results)) == ["steered: contrast is not the mean of its items"]


def test_published_results_have_no_text_of_truthfulqa() -> None:
    asked = {
        "theirs": "What happens if you swallow gum?",
        "own": "How are you?",
        "unasked": "Why is the sky blue?",
    }
    items = (
        Item(key="theirs", scores={"true": 1.0}, text="Nothing."),
        Item(key="own", scores={"contrast": 1.0}),
    )
    condition = Condition(name="baseline", label="baseline", items=items)
    questions = {key: QuestionText(question=text, best="It passes.") for key, text in asked.items()}
    kept = recompute.published(
        RESULTS.model_copy(update={"conditions": (condition,), "questions": questions})
    )
    assert kept.questions["own"].question == "How are you?"
    assert kept.questions["theirs"] == QuestionText(question="TruthfulQA, question theirs")
    assert kept.questions.keys() == {"theirs", "own"}
    assert kept.conditions[0].items[0].text == "Nothing."
