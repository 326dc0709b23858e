"""What the results pages say is what their raw results say; and what checks it sees when it is not so."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkout import ROOT

from subvene.runner.experiments.results import Condition, Item, Metric, Results

PAGES = ROOT / "docs" / "results"


recompute = SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "recompute.py"), run_name="recompute"))
WITH_RAW = [page for page in sorted(PAGES.glob("*.md")) if (page.with_suffix("") / recompute.RAW).is_file()]


@pytest.mark.parametrize("page", WITH_RAW, ids=lambda page: page.stem)
def test_a_page_says_what_its_raw_results_say(page: Path) -> None:
    assert list(recompute.problems(page, recompute.raw(page))) == []


def _condition(name: str, *scores: float) -> Condition:
    return Condition(
        name=name,
        label=name,
        group="kind",
        metrics={"score": Metric(mean=sum(scores) / len(scores), n=len(scores))},
        items=tuple(Item(key=str(i), scores={"score": score}) for i, score in enumerate(scores)),
    )


RESULTS = Results(
    kind="persona",
    sections={"persona": {"traits": {}}},
    conditions=(
        _condition("baseline", 10.0, 12.0, 11.0, 13.0, 9.0),
        _condition("steered", 50.0, 53.0, 50.0, 54.0, 48.0),
        _condition("prompted", 9.0, 14.0, 11.0, 12.0, 10.0),
    ),
)
GOOD = """# A page

<!-- differences.md where measure=score: from the raw results -->
<!-- end -->

- **Steered scores more** (+40.0 [+38.8, +41.2]). <!-- shown: kind/steered/score up -->
- Prompted: nothing is shown. <!-- not shown: kind/prompted/score -->
"""


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("", "", None),
        (
            "| kind | steered | score | 40.00 |",
            "| kind | steered | score | 41.00 |",
            "a table is not the one",
        ),
        ("steered/score up", "steered/score down", "is not shown"),
        ("shown: kind/prompted/score", "shown: kind/steered/score", "is shown"),
        ("not shown: kind/prompted/score", "shown: kind/prompted/score up", "is not shown"),
        ("+40.0 [+38.8, +41.2]", "+45.0 [+38.8, +41.2]", "does not give"),
        ("kind/steered/score up", "kind/steering/score up", "there is no such difference"),
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
    wrong = RESULTS.conditions[1].model_copy(update={"metrics": {"score": Metric(mean=60.0, n=5)}})
    results = RESULTS.model_copy(update={"conditions": (RESULTS.conditions[0], wrong)})
    assert list(recompute.problems(page, results)) == ["steered: score is not the mean of its items"]
