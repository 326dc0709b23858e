"""A real small run of each study: every section of its report has its data, and its files are all there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import loopback
import pytest
from markdown_tables import tables_in
from small_experiments import KINDS, Scripted, write_experiments

from subvene.runner import Results, run_experiment
from subvene.runner.reports.publish import REPORTS

COMPARED = {
    "Results",
    "Item by item",
    "Intervals",
    "What the judge&#x27;s word is worth",
    "Trade-offs",
    "Choice on validation questions",
    "Probes",
    "Examples",
    "Receipts",
    "Provenance",
    "Downloads",
}
NULLS = "Trait scores of models that say one thing"
# Only some runs have a composition, or pairs.
SECTIONS = {
    "plain": {"Samples", "Receipts", "Artifact", "Provenance", "Downloads"},
    "comparison": COMPARED,
    "mixed": COMPARED | {NULLS},
    "persona": {
        "Results",
        "Sweep",
        NULLS,
        "Judge-free contrast",
        "Differences",
        "Cost",
        "Projections",
        "Geometry",
        "Examples",
        "Receipts",
        "Extraction",
        "Judge",
        "Environment",
        "Downloads",
    },
    "interchange": {
        "Best layer of each place",
        "Cells by layer",
        "Every cell",
        "Provenance",
        "Downloads",
    },
    "tracing": {"Largest effects", "Effects by layer", "Facts", "Patching", "Provenance", "Downloads"},
    "localization": {
        "Verdict",
        "Arms",
        "Is the probed set special?",
        "What the judge&#x27;s word is worth",
        "Divergence and multiple choice",
        "Single heads",
        "Probes",
        "Choice on validation questions",
        "Every point",
        "Training",
        "Answers",
        "Receipts",
        "Provenance",
        "Downloads",
    },
}


LIMIT = 2_000_000
"""Characters that a page may have."""
ITEMS = 817
"""As many questions as TruthfulQA has, each with an answer as long as a persona's."""
ANSWER = "Most people say so, and nobody has looked. " * 25


def grown(results: Results) -> Results:
    """The results as they would be with many questions and long answers."""
    document = json.loads(results.to_json())
    questions = document["questions"]

    def key(old: str, i: int) -> str:
        return f"{old}-{i}"

    def more(value: Any) -> Any:
        if isinstance(value, list):
            return [more(one) for one in value]
        if not isinstance(value, dict):
            return value
        items = value.get("items")
        made = {name: more(inner) for name, inner in value.items() if name != "items"}
        if isinstance(items, list) and items and "key" in items[0]:
            n = -(-ITEMS // len(items))
            made["items"] = [
                item | {"key": key(item["key"], i)} | ({"text": f"{i} {ANSWER}"} if item.get("text") else {})
                for item in items
                for i in range(n)
            ]
        elif items is not None:
            made["items"] = more(items)
        if value.get("keys") and set(value["keys"]) <= questions.keys():
            made["keys"] = [key(old, i) for old in value["keys"] for i in range(ITEMS // len(value["keys"]))]
        return made

    made = more(document)
    made["questions"] = {key(old, i): text for old, text in questions.items() for i in range(ITEMS)}
    return Results.of(made)


@pytest.mark.parametrize("kind", KINDS)
def test_every_block_is_made_of_a_real_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBVENE_CACHE", str(tmp_path / "cache"))
    with loopback.serve(Scripted) as url:
        path = write_experiments(tmp_path, url, [kind])[kind]
        done = run_experiment(path, output=tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert set(re.findall(r"<h2>(.*?)</h2>", page)) == SECTIONS[kind]
    again = Results.load(tmp_path / "run")
    assert again == done.results
    report = REPORTS[again.kind]
    assert report.page(again) == page
    assert f"<h1>{kind}</h1>" in page
    assert len(report.page(grown(again))) < LIMIT
    drawn = {path.name: path.read_text("utf-8") for path in (tmp_path / "run" / "figures").glob("*")}
    assert set(drawn) == {f"{figure.name}.svg" for figure in report.page(again).figures}
    assert len(drawn) == page.count('<div class="plot"')
    assert bool(drawn) == (kind != "plain")
    files = {name: (tmp_path / "run" / "tables" / name).read_text("utf-8") for name in report.tables(again)}
    assert files == report.tables(again)
    for name, text in files.items():
        if name.endswith(".md") and tables_in(text):
            made = (tmp_path / "run" / "tables" / name).with_suffix(".tex").read_text("utf-8")
            assert made.count("\\toprule") == len(tables_in(text))
            # These runs' own texts are ASCII: what is not would be the tables' words.
            assert made.isascii()
    cards = [card.read_text("utf-8") for card in (tmp_path / "run").glob("artifact*/**/README.md")]
    assert bool(cards) == (kind != "tracing")  # which makes no artifact
    # The small plain run only writes samples, of which a card has no table.
    unmeasured = [card for card in cards if "Nothing that was measured" in card]
    assert len(unmeasured) == (kind == "plain")
