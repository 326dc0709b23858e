"""The page: everything in it, nothing fetched, nothing that a model wrote taken for markup."""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs_version

from subvene.runner.experiments.results import Results
from subvene.runner.experiments.rows import METRICS, Row, in_words, rows
from subvene.runner.reports import page as page_module
from subvene.runner.reports.examples import EXAMPLES
from subvene.runner.reports.sections import SECTIONS, baseline_conditions
from subvene.runner.reports.tables import results_json

HOSTILE = "</script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\"'&<!--${x}]]>"
# Results of format 1, as these are, have no intervals, and nothing of null answers.
NEWER = (
    *("Intervals", "What the judge's word is worth", "Every point"),
    *("Trait scores of models that say one thing", "The same divergence", "Item by item"),
)
TITLES = [title for title, _ in SECTIONS if title not in NEWER]
VOID = {"meta", "input"}


class Page(HTMLParser):
    """The page as a browser sees it, checked for balance on the way."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.tables: list[dict[str, Any]] = []
        self.articles: list[str] = []
        self.options: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if attributes.get("id"):
            self.ids.append(str(attributes["id"]))
        if tag not in VOID:
            self.open.append(tag)
        match tag:
            case "h2":
                self.headings.append("")
            case "script":
                self.scripts.append((attributes, ""))
            case "table":
                self.tables.append({"caption": "", "rows": []})
            case "tr":
                self.tables[-1]["rows"].append([])
            case "th" | "td":
                self.tables[-1]["rows"][-1].append("")
            case "article":
                self.articles.append("")
            case "option":
                self.options.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "h2" in self.open:
            self.headings[-1] += data
        if "script" in self.open:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        if "article" in self.open:
            self.articles[-1] += data
        if "option" in self.open:
            self.options[-1] += data
        if "caption" in self.open:
            self.tables[-1]["caption"] += data
        elif {"th", "td"} & set(self.open):
            self.tables[-1]["rows"][-1][-1] += data

    @property
    def figures(self) -> list[dict[str, Any]]:
        """What plotly is given, in order."""
        return [json.loads(text) for attrs, text in self.scripts if attrs.get("type") == "application/json"]

    def table(self, caption: str) -> list[list[str]]:
        (found,) = [table["rows"] for table in self.tables if table["caption"].startswith(caption)]
        return found


def render(document: dict[str, Any]) -> str:
    return page_module.render(Results.of(document))


def table_of(document: dict[str, Any]) -> list[Row]:
    return rows(Results.of(document).conditions)


PLOTLY = (Path(page_module.__file__).parent / page_module.PLOTLY).read_bytes()
PACKED = base64.b64encode(PLOTLY).decode()
LIBRARY = gzip.decompress(PLOTLY).decode()


def without_library(page: str) -> str:
    assert page.count(PACKED) == 1
    return page.replace(PACKED, "")


def with_answers(results: dict[str, Any], text: str) -> dict[str, Any]:
    for cell in results["cells"]:
        for found in cell["by_question"].values():
            found["answer"] = text
    return results


def test_all_sections_are_there_in_order_and_linked(results: dict[str, Any]) -> None:
    page = Page(render(results))
    assert page.headings == TITLES
    assert len(set(page.ids)) == len(page.ids)
    links = [a["href"] for tag, a in page.tags if tag == "a" and str(a["href"]).startswith("#")]
    assert len(links) == len(TITLES)
    assert {str(link)[1:] for link in links} <= set(page.ids)


def test_nothing_is_fetched(results: dict[str, Any]) -> None:
    text = without_library(render(results))
    page = Page(text)
    for tag, attributes in page.tags:
        for name in ("src", "srcset", "href", "action", "data", "poster", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
        assert tag not in ("link", "iframe", "object", "embed", "base")
    assert "://" not in text
    assert not re.search(r"@import|url\(", text)


def test_the_browser_is_told_to_run_these_scripts_only(results: dict[str, Any]) -> None:
    page = Page(render(results))
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    directives = dict(part.strip().split(" ", 1) for part in str(policy).split(";"))
    assert directives["default-src"] == "'none'"
    run = [text for attributes, text in page.scripts if "type" not in attributes]
    assert len(run) == 1
    allowed = [hashlib.sha256(text.encode()).digest() for text in (*run, LIBRARY)]
    digests = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in allowed]
    assert directives["script-src"].split() == digests
    # plotly's own default is a button that uploads the data of a figure.
    assert "showSendToCloud: false" in run[0]
    assert 'plotlyServerURL: ""' in run[0]


def test_plotly_is_embedded_once_and_only_for_figures(results: dict[str, Any]) -> None:
    text = render(results)
    assert text.count(PACKED) == 1
    results |= {"grid": [], "chosen": [], "fits": []}
    results["cells"] = [cell for cell in results["cells"] if cell["condition"] == "baseline"]
    assert PACKED not in render(results)


def test_the_bundle_is_of_the_version_and_has_every_chart_that_is_drawn() -> None:
    assert f"plotly.js (cartesian - minified) v{get_plotlyjs_version()}\n" in LIBRARY
    charts = set(re.findall(r'moduleType:"trace",name:"(\w+)"', LIBRARY))
    sources = (Path(page_module.__file__).parent).glob("*.py")
    drawn = set().union(*(re.findall(r"\bgo\.([A-Z]\w+)\(", source.read_text("utf-8")) for source in sources))
    assert {"Scatter", "Heatmap"} <= drawn
    assert {chart.lower() for chart in drawn - {"Figure"}} <= charts


def test_numbers_of_the_table_are_those_of_the_results(results: dict[str, Any]) -> None:
    head, *body = Page(render(results)).table("Mean ± standard deviation")
    assert [cell.split()[0] for cell in head] == ["Condition", *METRICS.values(), "n"]
    assert body == [
        [row.label, *(in_words(row.metrics[name]) for name in METRICS), "4"] for row in table_of(results)
    ]


def test_a_composition_is_told_metric_by_metric_and_order_by_order(results: dict[str, Any]) -> None:
    page = Page(render(results))
    lines = page.table("The untouched model, each intervention alone, and all of them in every order")
    assert lines == [
        ["Metric", "baseline", "a", "b", "a → b", "b → a", "Order-free error ↓", "Order sensitivity ↓"],
        ["MC2", "0.200", "0.300", "–", "0.250", "0.375", "0.625", "0.125"],
        ["KL", "0.200", "0.300", "–", "0.500", "0.500", "best 0.500", "0"],
    ]
    assert page.table("The same for each of 2 cells (seed and fold) alone")[1:] == [
        ["MC2", "0.125 – 0.125", "1"],
        ["KL", "0 – 0", "1"],
    ]


def test_a_metric_of_fewer_cells_says_so(results: dict[str, Any]) -> None:
    for cell in results["cells"]:
        if cell["seed"] == 2:
            del cell["metrics"]["true_info"]
    head, first, *_ = Page(render(results)).table("Mean ± standard deviation")
    column = next(i for i, cell in enumerate(head) if cell.startswith("True×Info"))
    assert first[column].endswith(" n=2")
    assert first[-1] == "4"


def test_what_must_be_known_stands_below_the_table(results: dict[str, Any]) -> None:
    text = render(results)
    assert "accuracy on held-out human labels: truth 0.823 (majority 0.576), info 0.911" in text
    assert 'class="warning"><strong>' not in text
    results["cells"][0]["questions_seen_in_fit"] = 15
    results["cells"][0]["metrics"]["true_without_verdict"] = 3
    text = render(results)
    assert 'class="warning"><strong>' in text
    assert "15 of 420 measurements of a question are of one that the fit saw" in text
    assert "no verdict on the truth of 3 answers" in text


def test_a_choice_on_questions_of_the_test_is_called_that(results: dict[str, Any]) -> None:
    assert "; it is tested on other questions." in render(results)
    for cell in results["cells"]:
        if cell["condition"] == "tuned":
            cell["questions_seen_in_fit"] = cell["questions"]
    assert "though these are questions that it is tested on" in render(results)


def test_hostile_text_is_inert(results: dict[str, Any]) -> None:
    results["manifest"]["environment"] = {"python": "3.11"}
    plain = Page(render(with_answers(results, "harmless")))
    with_answers(results, HOSTILE)
    for question in results["questions"].values():
        question |= {"question": HOSTILE, "best": HOSTILE, "category": HOSTILE}
    for entry in results["cells"]:
        if entry["condition"] == "weaker":
            entry["label"] += HOSTILE
    for entry in [*results["grid"], *results["chosen"]]:
        entry["point"] = {**entry["point"], "fit.select.k": f"{HOSTILE}{entry['point']['fit.select.k']}"}
    results["fits"][0]["condition"] = HOSTILE
    results["judges"][0]["kind"] = HOSTILE
    results["manifest"]["command"] = [HOSTILE]
    results["manifest"]["environment"] = {HOSTILE: HOSTILE}
    text = render(results)
    hostile = Page(text)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert "<img" not in without_library(text)
    assert HOSTILE in hostile.articles[0]
    assert "evil.example" in json.dumps(hostile.figures)
    assert "<img" not in json.dumps(hostile.figures)  # plotly reads HTML in its texts


@pytest.mark.parametrize(
    ("title", "emptied"),
    [
        ("Choice on validation questions", {"grid": [], "chosen": []}),
        ("Composition", {"composition": None}),
        ("Probes", {"fits": []}),
        ("Provenance", {"manifest": {}}),
    ],
)
def test_a_section_without_data_is_left_out(
    results: dict[str, Any], title: str, emptied: dict[str, Any]
) -> None:
    page = Page(render(results | emptied))
    assert page.headings == [other for other in TITLES if other != title]


def test_multiple_choice_alone(results: dict[str, Any]) -> None:
    for cell in results["cells"]:
        cell["metrics"] = {name: cell["metrics"][name] for name in ("mc1", "mc2", "mc3")}
        cell["receipts"].pop("generation", None)
        for found in cell["by_question"].values():
            for name in ("answer", "true", "true_p", "info", "info_p"):
                del found[name]
    results |= {"judges": [], "judge_usage": []}
    page = Page(render(results))
    assert page.headings == [title for title in TITLES if title != "Examples"]
    titles = [figure["layout"]["yaxis"]["title"]["text"] for figure in page.figures[:2]]
    assert titles == ["MC2", "MC1"]


def test_divergence_alone_and_one_condition(results: dict[str, Any]) -> None:
    cells = [cell for cell in results["cells"] if cell["condition"] == "iti"]
    for cell in cells:
        cell |= {"questions": 0, "by_question": {}, "metrics": {"ce": cell["metrics"]["ce"], "kl": None}}
    few = {"cells": cells, "questions": {}}
    page = Page(render(few))
    assert page.headings == ["Results", "Receipts", "Downloads"]
    assert page.figures == []


def test_results_without_any_cell() -> None:
    page = Page(render({"cells": [], "questions": {}}))
    assert page.headings == []


def test_empty_answers_and_missing_verdicts(results: dict[str, Any]) -> None:
    for cell in with_answers(results, "")["cells"]:
        cell["metrics"]["empty"] = 1.0
        for found in cell["by_question"].values():
            found |= {"true": None, "true_p": None}
    text = render(results)
    assert "(empty)" in text
    assert "no verdict (true?)" in text
    assert "baseline 100.0%" in text


def test_examples_begin_with_differing_verdicts(results: dict[str, Any]) -> None:
    for cell in results["cells"]:
        for found in cell["by_question"].values():
            found |= {"true": True, "info": True}
    differing = sorted(results["questions"])[-3:]
    for cell in results["cells"]:
        for key in differing:
            if key in cell["by_question"] and cell["condition"] == "iti":
                cell["by_question"][key]["info"] = False
    page = Page(render(results))
    assert len(page.articles) == EXAMPLES
    order = [*differing, *sorted(results["questions"])]
    for article, key in zip(page.articles, order, strict=False):
        assert article.startswith(results["questions"][key]["question"])
    labels = [row.label for row in table_of(results)]
    assert all(label in page.articles[0] for label in labels)


def test_receipts_add_up(results: dict[str, Any]) -> None:
    lines = Page(render(results)).table("What each intervention did")[1:]
    cells = [cell for cell in results["cells"] if cell["label"] == "iti"]
    parts = [part for cell in cells for part in cell["receipts"]["generation"]]
    response = sum(part["edited"]["response"] for part in parts)
    (line,) = [line for line in lines if line[:2] == ["iti", "generation"]]
    assert line[3:7] == [f"60 cursor + {response:,} response", "60 of 60", "0.150", "0.450"]
    assert {line[0] for line in lines}.isdisjoint({"baseline", "baked"})


def test_mean_relative_change_is_weighed_by_tokens(results: dict[str, Any]) -> None:
    for cell in results["cells"]:
        if cell["label"] == "iti":
            (part,) = cell["receipts"]["generation"]
            few = (cell["seed"], cell["fold"]) == (1, 0)
            part |= {"edited": {"prompt": 0, "cursor": 0, "response": 10 if few else 30}}
            part |= {"mean_relative": 1.0 if few else 0.5, "mean_strength": 2.0 if few else 1.0}
    lines = Page(render(results)).table("What each intervention did")[1:]
    (line,) = [line for line in lines if line[:2] == ["iti", "generation"]]
    assert line[5] == "0.550"
    assert line[7] == "1.100 on average"


def test_fits_with_the_same_probes_and_heads_are_shown_once(results: dict[str, Any]) -> None:
    results["fits"] += [fit | {"condition": "tuned"} for fit in results["fits"][:1]]
    page = Page(render(results))
    assert page.options == [
        "iti, seed 1, fold 0 (and 1 with the same probes and heads)",
        "iti, seed 1, fold 1",
        "iti, seed 2, fold 0",
        "iti, seed 2, fold 1",
    ]


def test_downloads_hold_the_table(results: dict[str, Any]) -> None:
    links = {a["download"]: str(a["href"]) for tag, a in Page(render(results)).tags if "download" in a}
    files = {name: base64.b64decode(href.partition("base64,")[2]).decode() for name, href in links.items()}
    assert json.loads(files["results.json"]) == json.loads(results_json(table_of(results)))
    lines = list(csv.DictReader(io.StringIO(files["results.csv"])))
    assert [float(line["mc1_mean"]) for line in lines] == [
        row.metrics["mc1"].mean for row in table_of(results)
    ]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("model: {name: m}", {"baseline"}),
        ("conditions: [{name: a, interventions: []}, {name: b, like: a}, {name: c}]", {"a", "b"}),
        ("conditions: [{name: a, interventions: []}, {name: b, like: a, interventions: [x]}]", {"a"}),
    ],
)
def test_baselines_are_the_conditions_without_interventions(spec: str, expected: set[str]) -> None:
    assert baseline_conditions(Results(kind="comparison", manifest={"spec": spec})) == expected


def test_same_results_same_page(results: dict[str, Any]) -> None:
    again = Results.of(json.loads(Results.of(results).to_json()))
    assert page_module.render(again) == render(results)
