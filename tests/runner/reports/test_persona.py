"""The page and the tables of a persona run: every number where it belongs, nothing fetched, nothing run."""

from __future__ import annotations

import base64
import copy
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from subvene.runner.experiments.persona.section import PersonaSection, SweepPoint
from subvene.runner.experiments.results import Choice, Condition, Metric, Results
from subvene.runner.reports import persona
from subvene.runner.reports import persona_tables as tables_module
from subvene.runner.reports.persona import SECTIONS
from subvene.runner.reports.persona_figures import (
    SCORES,
    along_coefficient,
    score_by_coefficient,
    score_by_layer,
)
from subvene.runner.reports.persona_tables import at, card
from subvene.runner.reports.persona_vector_figures import condition_styles
from subvene.runner.reports.publish import publish
from subvene.runner.reports.styles import style

from .persona_results import COEFFICIENTS, QUESTIONS, SWEPT, TRAITS, make_results
from .test_page import HOSTILE, PACKED, Page, without_library

FILES = {
    "conditions.csv",
    "sweep.csv",
    "responses.csv",
    "geometry.csv",
    "extraction.csv",
    "differences.csv",
    "differences.md",
    "differences.tex",
    "conditions.md",
    "conditions.tex",
}


@pytest.fixture
def results() -> dict[str, Any]:
    """As a run of format 1 wrote them; a new copy for every test."""
    return make_results()


def render(document: dict[str, Any]) -> str:
    return persona.render(Results.of(document))


def persona_files(document: dict[str, Any]) -> dict[str, str]:
    return tables_module.persona_files(Results.of(document))


def conditions(document: dict[str, Any]) -> dict[str, list[Condition]]:
    """Of every trait."""
    return tables_module.conditions_of(Results.of(document))


def swept(document: dict[str, Any], name: str) -> tuple[Sequence[SweepPoint], Choice]:
    """A trait's sweep, and the choice on it."""
    results = Results.of(document)
    return tables_module.points_of(section(document).traits[name]), tables_module.choices_of(results)[name]


def section(document: dict[str, Any]) -> PersonaSection:
    return tables_module.section_of(Results.of(document))


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def texts(value: Any) -> Iterator[tuple[Any, Any, str]]:
    """Every text of a JSON value but names of fields, with where it stands."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, str):
            yield value, key, inner
        elif isinstance(inner, dict | list):
            yield from texts(inner)


def test_all_sections_are_there_in_order_and_linked(results: dict[str, Any]) -> None:
    page = Page(render(results))
    # What was stored here had no nulls yet.
    assert page.headings == [title for title, _ in SECTIONS if not title.startswith("Trait scores of models")]
    assert len(set(page.ids)) == len(page.ids)
    links = {str(a["href"])[1:] for tag, a in page.tags if tag == "a" and str(a["href"]).startswith("#")}
    assert links <= set(page.ids)


def test_it_is_one_file_that_fetches_nothing(results: dict[str, Any]) -> None:
    text = without_library(render(results))
    for tag, attributes in Page(text).tags:
        for name in ("src", "srcset", "href", "action", "data", "poster", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    assert "://" not in text
    assert not re.search(r"@import|url\(", text)


def test_the_table_has_every_trait_under_every_condition(results: dict[str, Any]) -> None:
    _, *lines = Page(render(results)).table("Mean ± standard deviation over n responses; ↑")
    group = results["traits"]["optimistic"]["conditions"]
    assert [line[:2] for line in lines] == [[t, c["label"]] for t in TRAITS for c in group]
    steered, prompted = lines[3], lines[1]
    condition = group[3]
    assert steered[2:] == [
        "2",
        f"{condition['score']:.1f} ± 9.5",
        "81.2 ± 6.0",
        f"{condition['projection']:.2f} ± 1.20",
        "3.500",
        "0.300",
        "0.450",
        "0",
        str(QUESTIONS),
    ]
    assert prompted[2] == "–"
    assert prompted[6:9] == ["–"] * 3


def test_what_is_null_is_a_dash_and_never_none_or_nan(results: dict[str, Any]) -> None:
    for condition in results["traits"]["formal"]["conditions"]:
        for name in ("score", "score_sd", "coherence", "coherence_sd", "projection", "projection_sd"):
            condition[name] = None
        condition["cost"] = {"ce": None, "kl": None, "accuracy": None, "choices": 0, "texts": 0}
    text = render(results)
    lines = Page(text).table("Mean ± standard deviation over n responses; ↑")
    assert lines[-1] == ["formal", "ablated", *["–"] * 7, "0", str(QUESTIONS)]
    assert not re.search(r">[^<]*\b(None|nan|NaN|null)\b[^<]*</(td|th|p|span|li|figcaption)>", text)


def test_warnings_stand_before_the_first_section_each_once(results: dict[str, Any]) -> None:
    trait = results["traits"]["impolite"]
    trait["conditions"][4]["warning"] = "the cap changed 2% of the tokens, expected 75%"
    trait["extraction"]["warning"] = "6 pairs are left, fewer than 10"
    said = list(Results.of(results).notes)
    assert said == [
        "formal: 6 pairs are left, fewer than 10",
        "impolite: 6 pairs are left, fewer than 10",
        "impolite: capped: the cap changed 2% of the tokens, expected 75%",
    ]
    text = render(results)
    box = text.index('<div class="warning" role="note"><strong>3 warnings</strong>')
    assert box < text.index("<section")
    assert [text[box:].index(one) for one in said] == sorted(text[box:].index(one) for one in said)
    results["warnings"] = []
    for name in TRAITS:
        results["traits"][name]["extraction"]["warning"] = None
    trait["conditions"][4]["warning"] = None
    assert 'role="note"' not in render(results)


def test_hostile_text_is_inert_wherever_it_stands(results: dict[str, Any]) -> None:
    # What the code decides by, and text that is parsed, stay; everything else is a model's or a user's.
    decided = {"kind", "unit", "sites", "by"}
    results["warnings"] = []  # repeats what an extraction says, which it then would not
    shown = copy.deepcopy(results)
    for holder, key, text in list(texts(shown)):
        if key in decided or (isinstance(holder, list) and holder is shown["geometry"]["traits"]):
            continue
        holder[key] = HOSTILE + text
    for name in ("environment", "judge"):
        shown[name][HOSTILE] = HOSTILE
    page, plain = Page(render(shown)), Page(render(results))
    count = {"tr", "th", "td", "code"}  # two more facts
    assert [tag for tag, _ in page.tags if tag not in count] == [t for t, _ in plain.tags if t not in count]
    assert "<img" not in without_library(render(shown))
    assert "alert(1)" in page.articles[0]
    assert "evil.example" in json.dumps(page.figures)
    assert "<img" not in json.dumps(page.figures)  # plotly reads HTML in its texts


def test_a_script_in_a_response_is_shown_and_not_run(results: dict[str, Any]) -> None:
    trait = results["traits"]["optimistic"]
    for response in (*trait["sweep_responses"], *trait["responses"]):
        response["text"] = "<script>alert(1)</script>"
    text = render(results)
    assert "<script>alert" not in text
    assert "<script>alert(1)</script>" in Page(text).articles[0]


def test_score_and_coherence_have_a_line_for_each_layer(results: dict[str, Any]) -> None:
    trait = results["traits"]["optimistic"]
    points, choice = swept(results, "optimistic")
    made = score_by_coefficient(points, at(choice), "coefficient").to_plotly_json()
    lines = [t for t in made["data"] if t["mode"] == "lines+markers"]
    assert [t["name"] for t in lines if t.get("yaxis") != "y2"] == [f"layer {layer}" for layer in SWEPT]
    for trace in lines:
        layer = int(trace["legendgroup"])
        field = "coherence" if trace.get("yaxis") == "y2" else "score"
        expected = {p["coefficient"]: p[field] for p in trait["sweep"] if p["layer"] == layer}
        assert dict(zip(trace["x"], trace["y"], strict=True)) == expected
        assert tuple(trace["x"]) == COEFFICIENTS
    (ring,) = [t for t in made["data"] if t["name"] == "chosen"]
    (point,) = [p for p in trait["sweep"] if (p["layer"], p["coefficient"]) == (7, 1.0)]
    assert (list(ring["x"]), list(ring["y"])) == ([1.0], [point["score"]])
    across = score_by_layer(points, at(choice))
    assert across is not None
    assert [t.name for t in across.data] == ["−2", "−1", "0", "+1", "+2", "chosen"]
    assert score_by_layer([p for p in points if p.layer == 7], None) is None


@pytest.mark.parametrize("n", [2, 6, 7, 24])
def test_no_two_lines_look_alike(n: int) -> None:
    measured = {"score": Metric(mean=1, n=1), "coherence": Metric(mean=2, n=1), "n": 1, "refused": 0}
    places = [{"layer": layer, "coefficient": c} for layer in range(n) for c in (0.0, 1.0)]
    points = [SweepPoint.model_validate(place | measured) for place in places]
    made = score_by_coefficient(points, None, "c")
    looks = [(t.line.color, t.marker.symbol) for t in made.data if t.mode == "lines+markers"]
    assert len(set(looks)) == n
    assert len({style(i) for i in range(n)}) == n
    assert len({(style(i).color, style(i).symbol) for i in range(n)}) == n


def test_the_baseline_stands_at_zero_of_the_cost(results: dict[str, Any]) -> None:
    by_trait = conditions(results)
    made = along_coefficient(by_trait, "kl", "c", "KL", SCORES)
    assert made is not None
    assert [(list(t.x), list(t.y)) for t in made.data] == [([0.0, 2.0], [0.0, 0.3])] * 3
    only = {name: group[:3] for name, group in by_trait.items()}
    assert along_coefficient(only, "score", "c", "score") is None


def test_projections_are_grouped_by_condition_and_stand_beside_their_correlation(
    results: dict[str, Any],
) -> None:
    text = render(results)
    trait = results["traits"]["impolite"]
    boxes = [f for f in Page(text).figures if f["data"] and f["data"][0]["type"] == "box"]
    assert len(boxes) == len(TRAITS)
    assert {box["name"]: list(box["x"]) for box in boxes[1]["data"]} == {
        condition["label"]: [
            r["projection"] for r in trait["responses"] if r["condition"] == condition["label"]
        ]
        for condition in trait["conditions"]
    }
    assert "impolite: score against projection. Correlation: Pearson 0.81, Spearman 0.78, over 47" in text
    assert "formal: score against projection. Correlation: Pearson 0.81, Spearman –, over 47" in text
    looks = condition_styles(conditions(results)["impolite"])
    assert len({(look.color, look.symbol) for look in looks.values()}) == len(looks) == 6


def test_geometry_is_drawn_as_it_is(results: dict[str, Any]) -> None:
    maps = [f for f in Page(render(results)).figures if f["data"] and f["data"][0]["type"] == "heatmap"]
    found = results["geometry"]
    assert maps[0]["data"][0]["z"] == found["cosine_at_layer"]
    assert [m["data"][0]["z"] for m in maps[1:]] == [found["across_layers"][name] for name in TRAITS]
    for one in maps:
        heat = one["data"][0]
        assert (heat["zmin"], heat["zmax"]) == (-1, 1)
    _, *lines = Page(render(results)).table("Cosine similarity at layer 7")
    assert lines[1] == ["impolite", "−0.620", "1.000", "–"]


def test_examples_are_of_one_question_at_minus_zero_and_plus(results: dict[str, Any]) -> None:
    page = Page(render(results))
    trait = results["traits"]["optimistic"]
    first = page.articles[0]
    question = trait["sweep_responses"][0]["question"]
    assert first.startswith(question)
    wanted = [
        next(
            r
            for r in trait["sweep_responses"]
            # Unedited responses stand at the first layer only.
            if (r["layer"], r["coefficient"]) == at and r["question"] == question
        )
        for at in ((7, -1.0), (SWEPT[0], 0.0), (7, 1.0))
    ]
    places = [first.index(r["text"]) for r in wanted]
    assert places == sorted(places)
    for sign, response in zip(("−1", "0", "+1"), wanted, strict=True):
        assert f"coefficient {sign}{response['text']}score {response['score']:.1f}" in first
    assert page.options == list(TRAITS)


def test_without_a_choice_the_largest_coherent_coefficient_is_shown(results: dict[str, Any]) -> None:
    trait = results["traits"]["optimistic"]
    trait["chosen"] = None
    for point in trait["sweep"]:
        point["coherence"] = 49.0 if point["coefficient"] == 2 else 60.0
    first = Page(render(results)).articles[0]
    assert "coefficient −1" in first
    assert "coefficient +1" in first
    for point in trait["sweep"]:
        point["coherence"] = 60.0
    first = Page(render(results)).articles[0]
    assert "coefficient −2" in first
    assert "coefficient +2" in first


def test_extraction_counts_and_the_judges_agreement(results: dict[str, Any]) -> None:
    page = Page(render(results))
    _, *lines = page.table("Pairs of responses")
    assert lines[2] == [
        "formal", "50", "6", "30", "5", "3", "1", "0", "5", "0", "71.5", "–",
        "6 pairs are left, fewer than 10",
    ]  # fmt: skip
    _, *lines = page.table("Agreement of the judge")
    assert lines == [
        ["optimistic", "0.940", "0.875", "24"],
        ["impolite", "0.990", "0.958", "24"],
        ["formal", "–", "–", "–"],
    ]
    _, *lines = page.table("Capping")
    assert lines[0] == ["optimistic", "capped", "layer 7: −2.125", "75.0%", "71.0%"]


def test_vectors_alone(results: dict[str, Any]) -> None:
    name = "optimistic"
    trait = results["traits"][name]
    trait |= {"sweep": [], "sweep_responses": [], "responses": [], "conditions": [], "chosen": None}
    trait["correlation"] = {"pearson": None, "spearman": None, "n": 0}
    for field in ("layer", "unit", "positions"):  # of the intervention, and there is none
        del trait[field]
    results |= {"traits": {name: trait}, "warnings": []}
    found = results["geometry"]
    found |= {"traits": [name], "cosine_at_layer": [[1.0]], "cosine_by_layer": {}}
    found |= {part: {name: found[part][name]} for part in ("across_layers", "norms", "explained_variance")}
    page = Page(render(results))
    assert "optimistic: its vectors are made and not steered by." in render(results)
    assert page.headings == ["Results", "Geometry", "Extraction", "Judge", "Environment", "Downloads"]
    assert read(persona_files(results)["sweep.csv"]) == []
    results["geometry"] = None
    assert "Geometry" not in Page(render(results)).headings


def test_links_hold_the_same_files_as_the_folder(results: dict[str, Any], tmp_path: Path) -> None:
    publish(tmp_path / "run", Results.of(results))
    path = tmp_path / "run" / "report.html"
    links = {a["download"]: str(a["href"]) for t, a in Page(path.read_text("utf-8")).tags if "download" in a}
    inside = {name: base64.b64decode(href.partition("base64,")[2]) for name, href in links.items()}
    assert inside == {file.name: file.read_bytes() for file in (tmp_path / "run" / "tables").iterdir()}
    assert set(inside) == FILES
    assert [file.name for file in path.parent.iterdir() if file.is_file()] == ["report.html"]
    first = path.read_bytes()
    publish(tmp_path / "run", Results.of(json.loads(Results.of(results).to_json())))
    assert path.read_bytes() == first
    assert first.decode().count(PACKED) == 1


def test_files_hold_the_numbers_in_full(results: dict[str, Any]) -> None:
    results["traits"]["optimistic"]["responses"][0]["text"] = 'a "quoted", one\nline\r\nand more'
    results["traits"]["optimistic"]["responses"][1]["text"] = "bare\rreturn"
    files = {name: read(text) for name, text in persona_files(results).items() if name.endswith(".csv")}
    trait = results["traits"]["optimistic"]
    line = files["conditions.csv"][3]
    assert (line["trait"], line["label"], line["layers"]) == ("optimistic", "steered coefficient=2", "[7]")
    assert float(line["score"]) == trait["conditions"][3]["score"]
    assert (line["kl"], line["threshold"]) == ("0.3", "")
    assert len(files["sweep.csv"]) == 2 * len(SWEPT) * len(COEFFICIENTS)
    assert [(s["layer"], s["coefficient"]) for s in files["sweep.csv"] if s["chosen"] == "1"] == [
        ("7", "1.0")
    ] * 2
    responses = files["responses.csv"]
    assert len(responses) == sum(
        len(t["responses"]) + len(t["sweep_responses"]) for t in results["traits"].values()
    )
    assert responses[0]["text"] == 'a "quoted", one\nline\r\nand more'
    assert responses[1]["text"] == "bare\rreturn"
    assert float(responses[0]["projection"]) == trait["responses"][0]["projection"]
    lines = files["geometry.csv"]
    across = [g for g in lines if (g["measure"], g["trait"]) == ("across_layers", "formal")]
    assert len(across) == 12 * 12
    (pair,) = [
        g
        for g in lines
        if (g["measure"], g["trait"], g["other"]) == ("cosine_at_layer", "optimistic", "impolite")
    ]
    assert (pair["layer"], float(pair["value"])) == ("7", -0.62)
    assert {g["measure"] for g in lines} == {
        "cosine_at_layer", "cosine_by_layer", "across_layers", "norm", "residual_norm", "explained_variance",
    }  # fmt: skip
    assert files["extraction.csv"][2]["dropped_positive_low"] == "30"


def test_the_markdown_table_keeps_its_cells(results: dict[str, Any]) -> None:
    results["traits"]["optimistic"]["conditions"][0]["label"] = "a|b\n| <b> \\"
    text = persona_files(results)["conditions.md"]
    rows = [line for line in text.splitlines() if line.startswith("| optimistic")]
    assert len(rows) == 6
    assert rows[0].startswith("| optimistic | a\\|b \\| &lt;b> \\\\ | – |")
    assert "- WARNING: formal: 6 pairs are left, fewer than 10" in text


def test_a_card_has_the_table_of_its_own_trait(results: dict[str, Any]) -> None:
    def traits(place: str | None) -> list[str]:
        lines = card(Results.of(results), place).splitlines()[2:]
        return list(dict.fromkeys(line.split(" | ")[0][2:] for line in lines if line.startswith("| ")))

    assert traits("artifacts/impolite") == ["impolite"]
    assert traits("artifacts/all") == traits(None) == list(TRAITS)
    for trait in results["traits"].values():
        trait["conditions"] = []
    assert card(Results.of(results), "artifacts/impolite") == ""


def test_results_of_the_first_format_are_read_whole(results: dict[str, Any]) -> None:
    read_ = Results.of(results)
    assert Results.of(json.loads(read_.to_json())) == read_
    assert (read_.kind, read_.manifest["git"]) == ("persona", None)
    optimistic = section(results).traits["optimistic"]
    assert optimistic.steering is not None
    assert (optimistic.steering.layer, optimistic.steering.unit) == (7, "vector")
    assert section(results).traits["formal"].sweep is None
    _, choice = swept(results, "optimistic")
    assert (choice.metric, choice.chosen) == ("score", {"layer": 7, "coefficient": 1.0})
    assert len(choice.tried) == len(SWEPT) * len(COEFFICIENTS)
    steered = conditions(results)["optimistic"][3]
    assert steered.point == {"coefficient": 2.0}
    assert steered.metrics["kl"] == Metric(mean=0.3, n=20)
    assert steered.metrics["accuracy"].n == 60
    old = results["traits"]["optimistic"]["responses"][3 * QUESTIONS]
    item = steered.items[0]
    assert (read_.questions[item.key].question, item.text) == (old["question"], old["text"])
    assert item.scores == {name: old[name] for name in ("score", "coherence", "projection")}
    results["geometry"]["layers"] = None
    assert section(results).geometry == tables_module.section_of(read_).geometry
