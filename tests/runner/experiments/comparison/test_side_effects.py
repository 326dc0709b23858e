"""Refusals, likelihood of the model's own answers, and effects item by item, of a tiny model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from small_experiments import TRAIT

from subvene.runner import run_experiment
from subvene.runner.data.text import prompt_ids, reply_ids
from subvene.runner.experiments.item_effects import item_effects_in, item_effects_of
from subvene.runner.experiments.results import Condition, Item, Metric, Results
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.scoring import log_probs
from subvene.runner.measures.refusals import refuses, shipped_requests
from subvene.runner.reports.tables import metric_column
from subvene.specs import SubveneError

EXPERIMENT = """\
fit:
  recipe: mean_difference
  key: glad
  pairs: {texts: [{prompt: how are you, positive: i am very happy, negative: i am very gloomy}]}
interventions:
- {kind: steering, name: glad, layer: 1, vector: {key: glad}, coefficient: 4, positions: response}
conditions:
- {name: untouched, interventions: []}
- {name: glad, interventions: [glad]}
- {name: prompt, interventions: [], system: you are very glad}
evaluate:
- {kind: likelihood, traits: [{name: early, file: early.json}], max_new_tokens: 5}
- {kind: refusals, limit: 3, max_new_tokens: 4, batch_size: 4}
"""


@pytest.fixture(scope="module")
def kept() -> dict[str, Results | Path]:
    """The results and the folder of one run, filled by the first test that asks."""
    return {}


@pytest.fixture
def done(kept: dict[str, Results | Path], write: Callable[..., Path], tmp_path: Path) -> tuple[Results, Path]:
    if not kept:
        (tmp_path / "early.json").write_text(json.dumps(TRAIT))
        path = write(EXPERIMENT, "side-effects.yaml")
        kept["results"] = run_experiment(path, output=tmp_path / "run").results
        kept["folder"] = tmp_path / "run"
    results, folder = kept["results"], kept["folder"]
    assert isinstance(results, Results)
    assert isinstance(folder, Path)
    return results, folder


def of(results: Results, name: str) -> Condition:
    return next(one for one in results.conditions if one.name == name)


def test_own_answers_are_scored_as_by_hand(done: tuple[Results, Path]) -> None:
    results, folder = done
    units = [json.loads(line) for line in (folder / "units.jsonl").read_text().splitlines()]
    (own,) = [one["result"] for one in units if one["unit"]["unit"] == "own_answers"]
    cell = of(results, "glad")
    assert cell.artifact is not None
    m = IntervenedModel.from_pretrained(folder / cell.artifact)
    both = [
        bool(good.strip() and bad.strip()) for good, bad in zip(own["positive"], own["negative"], strict=True)
    ]
    assert cell.counts["early_left_out"] == both.count(False)
    first = both.index(True)
    question = TRAIT["evaluation_questions"][first]
    by_hand = []
    for answer in (own["positive"][first], own["negative"][first]):
        pair = reply_ids(m.tokenizer, prompt_ids(m.tokenizer, question), answer)
        by_hand.append(float(log_probs(m, [pair])[0][0]) / len(pair[1]))
    item = next(one for one in cell.items if "early_logp" in one.scores)
    assert item.scores["early_logp"] == pytest.approx(by_hand[0], abs=1e-5)
    assert item.scores["early_opposed_logp"] == pytest.approx(by_hand[1], abs=1e-5)
    assert item.scores["early_likelihood"] == pytest.approx(by_hand[0] - by_hand[1], abs=1e-5)
    assert cell.receipts["early_likelihood"]
    values = {of(results, name).value("early_logp") for name in ("untouched", "glad", "prompt")}
    assert len(values) == 3


def test_refusals_are_counted_of_both_lists(done: tuple[Results, Path]) -> None:
    results, folder = done
    cell = of(results, "glad")
    for metric, harmful in (("refusal", "harmful"), ("over_refusal", "harmless")):
        items = [one for one in cell.items if metric in one.scores]
        assert len(items) == 3
        assert {results.questions[one.key].category for one in items} == {harmful}
        assert cell.value(metric) == sum(refuses(one.text or "") for one in items) / 3
    assert "over refusal" in (folder / "tables" / "results.md").read_text()
    assert metric_column("over_refusal").better == metric_column("early_opposed_logp").better == "↓"
    assert metric_column("refusal").better == metric_column("early_logp").better == "↑"


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I’m sorry, but I can't help with that.", True),
        ("As an AI, I have no opinion.", True),
        ("Sure! First, open the door.", False),
        ("", False),
    ],
)
def test_a_phrase_makes_a_refusal(answer: str, refused: bool) -> None:
    assert refuses(answer) == refused


def test_shipped_requests_are_as_many_of_either_kind_and_all_different() -> None:
    requests = shipped_requests()
    assert sum(one.is_harmful for one in requests) * 2 == len(requests) == len({one.text for one in requests})


def cell(name: str, values: dict[str, float], metric: str = "score", seed: int = 0) -> Condition:
    items = tuple(Item(key=key, scores={metric: value}) for key, value in values.items())
    mean = sum(values.values()) / len(values)
    return Condition(name=name, label=name, seed=seed, items=items, metrics={metric: Metric(mean=mean, n=4)})


def test_the_share_of_items_that_go_the_wrong_way_is_counted_with_wilsons_interval() -> None:
    base = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}
    up = {"a": 9.0, "b": 1.0, "c": 0.5, "d": 2.0}
    effect = item_effects_of([cell("first", base), cell("up", up)]).rows["up"]["score"]
    assert (effect.wrong, effect.same, effect.items) == (0.25, 0.25, 4)
    n, p, z = 4, 0.25, 1.959964
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert effect.low == pytest.approx((centre - half) / (1 + z * z / n), abs=1e-6)
    assert effect.high == pytest.approx((centre + half) / (1 + z * z / n), abs=1e-6)


def test_what_is_better_when_it_is_less_goes_wrong_upwards_and_seeds_are_one_item() -> None:
    base = {"a": 0.0, "b": 1.0}
    cells = [cell("first", base, "over_refusal"), cell("x", {"a": 1.0, "b": 1.0}, "over_refusal")]
    cells.append(cell("x", {"a": 0.0, "b": 0.0}, "over_refusal", seed=1))
    effect = item_effects_of(cells).rows["x"]["over_refusal"]
    assert (effect.wrong, effect.same, effect.items) == (0.5, 0.0, 2)


def test_results_tables_and_page_hold_the_effects(done: tuple[Results, Path]) -> None:
    results, folder = done
    found = item_effects_in(results)
    assert found.against == "untouched"
    assert set(found.rows) == {"glad", "prompt"}
    assert "early_likelihood" in found.rows["glad"]
    assert "wrong way" in (folder / "tables" / "item_effects.md").read_text()
    assert (folder / "tables" / "item_effects.csv").is_file()
    assert "Item by item" in (folder / "report.html").read_text()


def test_tasks_of_a_harness_that_is_not_installed_are_refused_with_what_to_install(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    whole = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else whole(name))
    text = EXPERIMENT.partition("evaluate:")[0] + "evaluate:\n- {kind: lm_eval, tasks: [arc_easy]}\n"
    with pytest.raises(SubveneError, match=r"needs lm-evaluation-harness: pip install 'subvene\[lm-eval\]'"):
        run_experiment(write(text, "harness.yaml"), output=tmp_path / "run")
