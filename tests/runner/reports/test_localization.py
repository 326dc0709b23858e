"""The page, the tables and the printed story of a localization experiment, from results made by hand."""

from __future__ import annotations

import copy
import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from subvene.runner.cli._localization import LocalizationStory
from subvene.runner.experiments.localization.section import SECTION, LocalizationSection, section_of
from subvene.runner.experiments.results import Condition, Results, ResultsError
from subvene.runner.reports import localization as report
from subvene.runner.reports import localization_tables as tables
from subvene.runner.reports.documents import in_markdown
from subvene.runner.reports.localization import SECTIONS
from subvene.runner.reports.localization_arms import Arm, by_group
from subvene.runner.reports.localization_figures import STYLES, against, draws, training_curves
from subvene.runner.reports.publish import publish

from .localization_results import DRAWS, METRICS, QUESTIONS, SINGLES, make_results
from .test_page import HOSTILE, NEWER, Page, without_library

TITLES = [title for title, _ in SECTIONS if title not in NEWER]
ARMS = "On test questions"


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return make_results()


@pytest.fixture(scope="module")
def rendered(made: dict[str, Any]) -> str:
    """The page of the results as they are."""
    return render(made)


@pytest.fixture
def results(made: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(made)


def render(document: dict[str, Any]) -> str:
    return report.render(Results.of(document))


def localization_files(document: dict[str, Any]) -> dict[str, str]:
    return tables.localization_files(Results.of(document))


def localization_markdown(document: dict[str, Any]) -> str:
    return in_markdown(tables.document(Results.of(document)))


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def arm(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in results["arms"] if one["name"] == name)


def story(results: dict[str, Any], width: int = 80) -> str:
    out, errors = (Console(file=io.StringIO(), width=width) for _ in range(2))
    with LocalizationStory(out, errors) as told:
        told.step("finished", Results.of(results))
    text: str = out.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_all_sections_are_there_in_order_and_linked(rendered: str) -> None:
    page = Page(rendered)
    assert page.headings == TITLES
    assert len(set(page.ids)) == len(page.ids)
    links = {str(a["href"])[1:] for tag, a in page.tags if tag == "a" and str(a["href"]).startswith("#")}
    assert links <= set(page.ids)


def test_it_is_one_file_that_fetches_nothing(rendered: str) -> None:
    text = without_library(rendered)
    for tag, attributes in Page(text).tags:
        for name in ("src", "srcset", "href", "action", "data", "poster", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    assert "://" not in text


def test_the_table_has_a_line_for_each_group_with_mean_and_range(
    results: dict[str, Any], rendered: str
) -> None:
    head, *lines = Page(rendered).table(ARMS)
    assert len(head) == 4 + len(METRICS)
    assert [line[0].partition(" heads")[0] for line in lines][:3] == [
        "untouched model", "ITI, probed", "ITI, random",
    ]  # fmt: skip
    column = next(i for i, cell in enumerate(head) if cell.startswith("MC2"))
    probed = arm(results, "edit_probed")
    low, high = probed["intervals"]["mc2"]
    assert lines[3][column] == f"{probed['metrics']['mc2']:.3f}[{low:.3f}, {high:.3f}]"
    assert lines[3][:2] == ["edit, probed heads", "13"]
    assert lines[3][3] == f"tau={probed['point']['tau']}"
    values = [one["metrics"]["mc2"] for one in results["arms"] if one["group"] == "edit_random"]
    assert lines[4][column] == f"{sum(values) / DRAWS:.3f}({min(values):.3f} to {max(values):.3f})"
    assert lines[4][:2] == [f"edit, random heads × {DRAWS}", "13"]
    assert lines[0][1:4] == ["–"] * 3
    assert len(Page(rendered).table("Each random draw")) == 1 + 2 * DRAWS + SINGLES


def test_the_verdict_comes_first_and_differences_say_where_zero_is(results: dict[str, Any]) -> None:
    results["comparisons"][0]["interval"] = [-0.01, 0.02]
    page = Page(render(results))
    assert page.headings[0] == "Verdict"
    assert results["verdict"][2] in render(results)
    _, *lines = page.table("Differences")
    assert [line[4] for line in lines] == ["inside", "outside", "outside", "outside"]
    assert lines[0][0] == "edit, probed heads − ITI, probed heads"


def test_evidence_is_told_as_it_was_computed(results: dict[str, Any]) -> None:
    found = next(e for e in results["evidence"] if (e["family"], e["metric"]) == ("edit", "mc2"))
    found["rank"] = {"at_least": 3, "n": DRAWS, "p": 4 / 17}
    found["t_test"] = {"t": -2.5, "df": 15, "p": 0.0002}
    found |= {"prediction": [0.4, 0.5], "inside": False, "probed": 0.6}
    text = render(results)
    _, *lines = Page(text).table("Trained edit: the probed set")
    line = next(line for line in lines if line[0].startswith("MC2"))
    assert line[1] == "0.600"
    assert line[4:] == [
        str(DRAWS),
        f"3 of {DRAWS}",
        "0.235",
        "p < 0.001t(15) = −2.50",
        "[0.400, 0.500]",
        "outside",
    ]
    assert (
        f"3 of {DRAWS} random draws at least as good as the probed heads, rank p = 0.235. The probed" in text
    )
    assert "lie outside the prediction interval [0.400, 0.500]" in text
    assert f"cannot fall below 1/{DRAWS + 1} here" in text


def test_a_histogram_holds_every_draw_once_and_marks_the_probed_set() -> None:
    values = [0.0, 0.2, 0.2, 0.3, 0.9, None]
    figure = draws(values, "mc2", "edit_random", {"edit_probed": 0.5, "baseline": 0.05}, [-0.1, 1.0], 0.95)
    assert figure is not None
    bars, interval, ticks, probed, baseline = figure.data
    assert sum(bars.y) == 5
    assert list(ticks.x) == [0.0, 0.2, 0.2, 0.3, 0.9]
    assert list(ticks.text) == [f"draw {i}" for i in range(1, 6)]
    assert list(interval.x) == [-0.1, 1.0]
    assert (list(probed.x), list(baseline.x)) == ([0.5, 0.5], [0.05, 0.05])
    assert probed.line.dash != baseline.line.dash
    low, high = figure.layout.xaxis.range
    assert low < -0.1
    assert high > 1.0


def test_few_draws_are_ticks_alone_and_a_huge_interval_does_not_squash_them() -> None:
    figure = draws([0.50, 0.51], "mc2", "edit_random", {"edit_probed": 0.505}, [-3.0, 4.0], 0.95)
    assert figure is not None
    assert [trace.type for trace in figure.data] == ["scatter"] * 3
    assert not figure.layout.yaxis.visible
    low, high = figure.layout.xaxis.range
    assert high - low < 0.1
    assert draws([None], "mc2", "edit_random", {}) is None


def test_an_interval_beyond_the_figure_is_said_so(results: dict[str, Any]) -> None:
    assert "reaches beyond" not in render(results)
    results["evidence"][0]["prediction"] = [-9.0, 9.0]
    assert render(results).count("The interval reaches beyond the figure.") == 1


def test_no_two_groups_look_alike_without_colour() -> None:
    looks = [style.symbol for style in STYLES.values()]
    assert len(set(looks)) == len(looks)


def test_a_mark_for_every_arm_that_has_both(results: dict[str, Any]) -> None:
    arm(results, "edit_random_2")["metrics"]["kl"] = None
    del arm(results, "lora")["metrics"]["mc2"]

    def measure(name: str) -> Callable[[Arm], float | None]:
        return lambda one: one.value(name)

    groups = by_group(Results.of(results))
    figure = against(groups, measure("kl"), measure("mc2"), ("KL", "MC2"), ("kl", "mc2"))
    assert figure is not None
    assert sum(len(trace.x) for trace in figure.data) == len(results["arms"]) - 2
    probed = next(trace for trace in figure.data if trace.name == "edit, probed heads")
    bounds = arm(results, "edit_probed")["intervals"]["mc2"]
    assert probed.error_y.array[0] == pytest.approx(bounds[1] - probed.y[0])
    assert probed.error_y.arrayminus[0] == pytest.approx(probed.y[0] - bounds[0])
    alone = {"baseline": groups["baseline"]}
    assert against(alone, measure("kl"), measure("mc2"), ("KL", "MC2")) is None


def test_single_heads_say_how_many_reach_the_probed_set(results: dict[str, Any]) -> None:
    results["singles"][0] |= {"reach": 7, "best": 0.4321}
    text = render(results)
    assert f"MC1 of {SINGLES} edits of one head each; 7 of {SINGLES} do at least as well" in text
    assert "The highest is 0.432" in text
    results["singles"][0]["reach"] = None
    for i, one in enumerate(a for a in results["arms"] if a["group"] == "edit_single"):
        one["probe_accuracy"], one["metrics"]["mc2"] = i / 100, -float(i)
    assert f"Spearman correlation over edit, one head × {SINGLES}: −1.00." in (text := render(results))
    assert f"MC1 of {SINGLES} edits of one head each. The highest" in text


def test_the_heat_map_rings_the_heads_of_each_arm_once(results: dict[str, Any], rendered: str) -> None:
    page = Page(rendered)
    assert page.options[0] == "ITI, probed heads; edit, probed heads"
    assert len(page.options) == 1 + 2 * DRAWS + 1
    maps = [
        f for f in page.figures if f["data"] and f["data"][0]["type"] == "heatmap" and "zmin" in f["data"][0]
    ]
    marked = list(zip(maps[0]["data"][1]["y"], maps[0]["data"][1]["x"], strict=True))
    heads = arm(results, "edit_probed")["heads"]
    assert marked == [(int(layer), head) for layer, of in heads.items() for head in of]
    assert maps[0]["data"][1]["name"] == "edited"


def test_what_was_tried_and_what_was_taken(results: dict[str, Any], rendered: str) -> None:
    _, *lines = Page(rendered).table("Every point tried")
    lines_of = [line for line in lines if line[0] == "edit_probed"]
    assert len(lines_of) == 5
    taken = [line[1] for line in lines_of if line[3]]
    assert taken == [f"tau={arm(results, 'edit_probed')['point']['tau']}"]
    chosen = [line for line in read(localization_files(results)["selection.csv"]) if line["chosen"] == "1"]
    assert len(chosen) == len(results["arms"]) - 1


def test_training_rings_the_kept_step_of_arms_that_stand_alone(results: dict[str, Any]) -> None:
    figure = training_curves(by_group(Results.of(results)), "loss", "loss")
    assert figure is not None
    *lines, ring = figure.data
    assert len(lines) == DRAWS + SINGLES + 3
    assert sum(bool(line.showlegend) for line in lines) == 5
    kept = arm(results, "edit_probed")["training"]
    assert (ring.name, ring.x[0]) == ("kept", kept["best_step"])
    assert figure.layout.yaxis.type == "log"
    untrained = Arm(Condition(name="lora", label="lora", group="lora"))
    assert training_curves({"lora": [untrained]}, "loss", "loss") is None


def test_answers_stand_side_by_side_with_one_random_draw(rendered: str) -> None:
    first = Page(rendered).articles[0]
    places = [
        first.index(name) for name in ("untouched model", "ITI, probed", "edit, probed", "edit, random")
    ]
    assert places == sorted(places)
    assert "edit, random heads 2" not in first


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ("generation", {"Truth and information", "Answers"}),
        ("kl", {"Divergence and multiple choice"}),
        ("lora", set()),
        ("iti", set()),
        ("singles", set()),
        ("draws", {"Is the probed set special?"}),
        (
            "rest",
            {"Verdict", "Probes", "Choice on validation questions", "Training", "Receipts", "Provenance"},
        ),
    ],
)
def test_what_was_not_done_is_left_out(results: dict[str, Any], missing: str, gone: set[str]) -> None:
    match missing:
        case "generation":
            for one in results["arms"]:
                one["metrics"] = {m: v for m, v in one["metrics"].items() if m not in METRICS[3:7]}
                one["by_question"] = {k: {"mc1": 1.0} for k in one["by_question"]}
            results["evidence"] = [e for e in results["evidence"] if e["metric"] != "true_info"]
        case "kl":
            for one in results["arms"]:
                one["metrics"]["kl"] = None
            results["evidence"] = [e for e in results["evidence"] if e["metric"] != "kl"]
        case "lora" | "iti":
            results["arms"] = [one for one in results["arms"] if one["family"] != missing]
            results["evidence"] = [e for e in results["evidence"] if e["family"] != missing]
        case "singles":
            results["arms"] = [one for one in results["arms"] if one["group"] != "edit_single"]
            results["singles"] = []
        case "draws":
            results["arms"] = [one for one in results["arms"] if "random" not in one["group"]]
            results["evidence"] = []
        case "rest":
            for one in results["arms"]:
                one |= {"candidates": [], "training": None, "receipts": {}, "intervals": {}, "point": {}}
            results |= {"verdict": [], "probes": None, "manifest": {}, "judges": [], "split": {}}
    text = render(results)
    assert set(TITLES) - set(Page(text).headings) == gone
    assert not re.search(r">[^<]*\b(None|nan|NaN|null)\b[^<]*</(td|th|p|span|li|figcaption)>", text)
    assert localization_files(results)["arms.csv"]
    assert story(results)


def test_one_draw_has_neither_spread_nor_interval() -> None:
    results = make_results(1, 0)
    text = render(results)
    _, *lines = Page(text).table("Trained edit: the probed set")
    assert lines[0][3:5] == ["–", "1"]
    assert lines[0][7:] == ["–", "–", "–"]
    assert "of 1 random draw at least as good" in text
    assert "No prediction interval: too few draws, or all alike." in text
    assert " × 1" not in story(results)
    assert read(localization_files(results)["evidence.csv"])[0]["prediction_low"] == ""


def test_hostile_text_is_inert(results: dict[str, Any]) -> None:
    plain = [tag for tag, _ in Page(render(results)).tags]
    for question in results["questions"].values():
        question |= {"question": HOSTILE, "best": HOSTILE, "category": HOSTILE}
    for one in results["arms"]:
        for found in one["by_question"].values():
            found["answer"] = HOSTILE
    results["verdict"] = [HOSTILE] * 3
    arm(results, "lora").update(name=HOSTILE, group=HOSTILE)
    text = without_library(render(results))
    assert [tag for tag, _ in Page(text).tags] == plain
    assert "<img" not in text
    assert "alert(1)</script>" not in text
    assert "<img" not in localization_markdown(results)
    assert HOSTILE in story(results, width=400)


def test_files_are_those_of_the_page_and_hold_the_numbers_in_full(
    results: dict[str, Any], tmp_path: Path
) -> None:
    publish(tmp_path / "run", Results.of(results))
    files = {file.name: file.read_text("utf-8") for file in (tmp_path / "run" / "tables").iterdir()}
    page = Page((tmp_path / "run" / "report.html").read_text("utf-8"))
    assert {a["download"] for _, a in page.tags if "download" in a} == set(files)
    expected = {
        f"{name}.csv" for name in ("arms", "evidence", "selection", "comparisons", "training", "answers")
    }
    assert set(files) == expected | {"results.md", "results.tex"}
    lines = read(files["arms.csv"])
    assert [line["arm"] for line in lines] == [one["name"] for one in results["arms"]]
    probed = arm(results, "edit_probed")
    line = next(line for line in lines if line["arm"] == "edit_probed")
    assert float(line["mc2"]) == probed["metrics"]["mc2"]
    assert [float(line["mc2_low"]), float(line["mc2_high"])] == probed["intervals"]["mc2"]
    assert json.loads(line["heads"]) == probed["heads"]
    found = read(files["evidence.csv"])[0]
    assert json.loads(found["random"]) == results["evidence"][0]["random"]
    assert float(found["rank_p"]) == results["evidence"][0]["rank"]["p"]
    assert float(found["t_p"]) == results["evidence"][0]["t_test"]["p"]
    assert len(read(files["answers.csv"])) == QUESTIONS * len(results["arms"])


def test_the_markdown_says_verdict_arms_and_evidence(results: dict[str, Any]) -> None:
    text = localization_markdown(results)
    assert text.startswith(f"- {results['verdict'][0]}")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    families = {one["family"] for one in results["evidence"]}
    assert len(rows) == 2 * (1 + len(families)) + 8 + len(results["evidence"])
    assert f"| edit, one head × {SINGLES} | 1 |" in text
    assert "judge trained: accuracy on held-out human labels: truth 0.823" in text


def test_the_story_has_groups_in_three_lines_and_ends_with_the_verdict(results: dict[str, Any]) -> None:
    lines = story(results, width=110).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"edit, random heads × {DRAWS}"))
    values = [one["metrics"]["mc1"] for one in results["arms"] if one["group"] == "edit_random"]
    wanted = (sum(values) / DRAWS, min(values), max(values))
    header = next(line for line in lines if line.startswith("arm"))
    end = header.index("MC1") + 3
    shown = [line[:end].split()[-1].strip("()") for line in lines[at : at + 3]]
    assert shown == [f"{value:.3f}" for value in wanted]
    assert lines[-3:] == [f"- {said}" for said in results["verdict"]]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_story_cuts_no_number(results: dict[str, Any], width: int) -> None:
    arm(results, "lora")["metrics"]["ce"] = 12.3456
    text = story(results, width=width)
    assert "…" not in text
    for value in arm(results, "lora")["metrics"].values():
        assert re.search(rf"(?<![\d.]){value:.3f}(?!\d)", text)
    verdict = text.index("× n: the mean")
    assert max(map(len, text[:verdict].splitlines())) <= width
    parts = [line for line in text.splitlines() if line.startswith("arm ")]
    assert len(parts) == {60: 4, 80: 3, 200: 1}[width]


def test_a_unit_is_told_in_its_own_words() -> None:
    errors = Console(file=io.StringIO(), width=80)
    with LocalizationStory(Console(file=io.StringIO()), errors) as told:
        told.step("planned", 2)
        told.step("unit", {"what": "edit_random_3: multiple choice", "was_done": True})
    said: str = errors.file.getvalue()  # type: ignore[attr-defined]
    assert "[1/2] edit_random_3: multiple choice (done before)" in said


def test_results_are_read_whole_from_either_format(results: dict[str, Any]) -> None:
    upgraded = Results.of(results)
    again = Results.of(json.loads(upgraded.to_json()))
    assert again == upgraded
    section = section_of(again)
    assert list(section.arms) == [one["name"] for one in results["arms"]]
    assert section.verdict == tuple(results["verdict"])
    assert section.arms["edit_probed"].training is not None
    assert report.render(again) == render(results)


def test_a_section_that_is_not_there_or_not_right_is_named(results: dict[str, Any]) -> None:
    made = Results.of(results)
    with pytest.raises(ResultsError, match=r"sections\.localization: expected"):
        report.render(made.model_copy(update={"sections": {}}))
    section: dict[str, Any] = section_of(made).model_dump(mode="json")
    section["evidence"][0]["rank"]["p"] = "small"
    broken = made.model_copy(update={"sections": {SECTION: section}})
    with pytest.raises(ResultsError, match=r"sections\.localization\.evidence\.0\.rank\.p"):
        broken.section(SECTION, LocalizationSection)


def test_missing_verdicts_have_a_column(results: dict[str, Any]) -> None:
    assert "verdicts missing" not in localization_markdown(results)
    lora = arm(results, "lora")
    for found in list(lora["by_question"].values())[:2]:
        found |= {"true": None, "true_missing": "timed out"}
    lora["metrics"]["true_missing"] = 2
    text = localization_markdown(results)
    assert "| verdicts missing |" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert next(row for row in rows if row.startswith("| LoRA")).endswith("| 2 |")
    assert next(row for row in rows if row.startswith("| untouched")).endswith("| 0 |")
    lines = read(localization_files(results)["arms.csv"])
    assert [line["true_missing"] for line in lines if line["arm"] == "lora"] == ["2"]
