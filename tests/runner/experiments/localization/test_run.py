"""A localization experiment end to end on a tiny model: what is measured, reused, and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import connect, serve_hub
from tiny_questions import PRIMER, QUESTIONS, TEXTS, write_questions

from subvene.runner import IntervenedModel, run_experiment
from subvene.runner.artifacts.hub import push
from subvene.runner.experiments.comparison.summary import METRICS
from subvene.runner.reports.card import measured_of
from subvene.runner.reports.localization_tables import localization_markdown
from subvene.specs import SubveneError

LOCALIZATION = """\
fit:
  recipe: localized_edit
  key: e
  data: {truthfulqa: {file: questions.csv}}
  heads: {rule: probed, k: 2, validation: 0.34}
  objective: {kind: ipo, tau: 0.5}
  validation: 0.34
  epochs: 4
  learning_rate: 0.05
interventions:
- {kind: low_rank_edit, name: edit, factors: {key: e}, positions: all}
evaluate:
- {kind: localization, random: 2, single: 2, tau: [0.5, 1], iti: {strengths: [1, 5]}, test: 0.34,
   learning_rate_single: 0.05, learning_rate_all: 0.05, resamples: 200}
- {kind: truthfulqa, data: {file: questions.csv}, preset: qa, primer: primer.txt, max_new_tokens: 5,
   judge: {kind: reference}}
- {kind: divergence, texts: {file: texts.txt}, max_tokens: 8}
seed: 1
"""
ARMS = [
    "baseline",
    "iti_probed",
    "iti_random_1",
    "iti_random_2",
    "edit_probed",
    "edit_random_1",
    "edit_random_2",
    "edit_single_1",
    "edit_single_2",
    "edit_all",
    "lora",
]


@pytest.fixture
def localization(write: Callable[..., Path], tmp_path: Path) -> Path:
    (tmp_path / "primer.txt").write_text(PRIMER)
    (tmp_path / "texts.txt").write_text(TEXTS)
    write_questions(tmp_path / "questions.csv", QUESTIONS)
    return write(LOCALIZATION, "localization.yaml")


def run(path: Path, output: Path, steps: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    def step(what: str, value: Any) -> None:
        if what == "unit" and steps is not None:
            steps.append(value)

    return dict(run_experiment(path, output=output, on_step=step).results)


def test_end_to_end(localization: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[dict[str, Any]] = []
    results = run(localization, tmp_path / "run", steps)
    arms = {arm["name"]: arm for arm in results["arms"]}
    assert list(arms) == ARMS
    assert not any(
        step["was_done"] for step in steps if step["what"].startswith("edit_") and "training" in step["what"]
    )

    # Nothing of the test was fitted or chosen on: the questions are told apart by the text alone.
    tested = set(results["questions"])
    assert len(tested) == 4
    split = {"train": 5, "validation": 3, "test": 4, "tuning": 8}
    assert results["split"] == split | {"pairs": results["split"]["pairs"]}
    for arm in arms.values():
        assert arm["by_question"].keys() == tested
        assert {"true", "mc1", "mc2", "ce", "kl"} <= arm["metrics"].keys()
        assert {"mc2", "kl"} <= arm["intervals"].keys()
        low, high = arm["intervals"]["mc2"]
        assert low <= arm["metrics"]["mc2"] <= high

    # The same heads for ITI and for the edit, as the probes rank them; and probing accuracy beside them.
    assert arms["iti_probed"]["heads"] == arms["edit_probed"]["heads"]
    for i in (1, 2):
        assert arms[f"iti_random_{i}"]["heads"] == arms[f"edit_random_{i}"]["heads"]
        assert arms[f"edit_single_{i}"]["n_heads"] == 1
    best = sorted((a for row in results["probes"]["accuracy"] for a in row), reverse=True)[:2]
    assert arms["edit_probed"]["probe_accuracy"] == pytest.approx(sum(best) / 2)

    # One of the points was chosen, by what it gave on validation.
    for name, arm in arms.items():
        if name == "baseline":
            assert arm["metrics"]["kl"] == pytest.approx(0, abs=1e-7)
            continue
        values = [tried["value"] for tried in arm["candidates"]]
        assert len(values) == 2
        assert arm["point"] == arm["candidates"][values.index(max(values))]["point"]
        if arm["training"] and arm["training"]["best_step"] == 0:
            # No step lowered the validation loss: the edit is none, and the verdict names it.
            assert arm["metrics"]["kl"] == pytest.approx(0, abs=1e-7)
            assert any(name in sentence and "do nothing" in sentence for sentence in results["verdict"])
        else:
            assert arm["metrics"]["kl"] > 1e-6, name
    assert {e["family"] for e in results["evidence"]} == {"iti", "edit"}
    assert results["verdict"]

    # What was measured is what is saved.
    artifact = IntervenedModel.from_pretrained(tmp_path / "run" / arms["edit_probed"]["artifact"])
    assert {str(layer) for layer in artifact.provenance["heads"]} == arms["edit_probed"]["heads"].keys()
    for name in ("results.json", "report.html", "manifest.json", "tables/arms.csv", "tables/evidence.csv"):
        assert (tmp_path / "run" / name).is_file()
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == json.loads(json.dumps(results))

    # What is pushed of it brings its numbers: its own, and the table of all arms.
    with serve_hub(tmp_path / "server") as server:
        connect(monkeypatch, server, tmp_path / "home")
        kept = tmp_path / "run" / "artifacts" / "edit_probed"
        for given in (None, tmp_path / "run" / "results.json"):
            push(kept, "ann/edit", measured=measured_of(kept, given))
            card = server.content("ann/edit", "README.md").decode()
            own = next(
                line for line in card.splitlines() if line.startswith("This folder is **edit_probed** of")
            )
            for metric, value in arms["edit_probed"]["metrics"].items():
                assert f"{METRICS.get(metric, metric)} {value:.4g}" in own
            assert localization_markdown(results) in card
            assert "| edit, random heads × 2 |" in card
            del server.repositories["ann/edit"]

    # A second run does nothing again and finds the same; two more draws train only these.
    steps.clear()
    assert run(localization, tmp_path / "run", steps)["arms"] == results["arms"]
    assert all(step["was_done"] for step in steps)
    steps.clear()
    localization.write_text(localization.read_text().replace("random: 2", "random: 3"))
    more = run(localization, tmp_path / "run", steps)
    fresh = {step["what"].split(":")[0].split(",")[0] for step in steps if not step["was_done"]}
    fresh = {name.removesuffix(" on validation") for name in fresh}
    assert fresh == {"iti_random_3", "edit_random_3"}
    kept = {arm["name"]: arm for arm in more["arms"]}
    assert all(kept[name] == arms[name] for name in ARMS)


def test_an_edit_trained_among_others_is_the_edit_trained_alone(localization: Path, tmp_path: Path) -> None:
    text = localization.read_text().replace("tau: [0.5, 1], ", "")
    arms = "arms: [edit_probed, edit_random]"
    localization.write_text(text.replace("kind: localization,", f"kind: localization, {arms},"))
    together = run(localization, tmp_path / "together")["arms"]
    localization.write_text(text.replace("kind: localization,", "kind: localization, arms: [edit_probed],"))
    (_, alone) = run(localization, tmp_path / "alone")["arms"]
    for metric in ("mc2", "kl"):
        assert together[1]["metrics"][metric] == pytest.approx(alone["metrics"][metric], abs=1e-4)


def test_changed_test_questions_change_no_edit(localization: Path, tmp_path: Path) -> None:
    arms = "kind: localization, arms: [iti_probed, edit_probed],"
    localization.write_text(localization.read_text().replace("kind: localization,", arms))
    first = run(localization, tmp_path / "first")
    tested = {one["question"] for one in first["questions"].values()}
    # Other answers, the same questions: the split depends on what is asked.
    changed = [
        (q, "the sun", ["the sun", "a sun"], ["rain", "the rain"])
        if q in tested or f"{q}?" in tested
        else row
        for row in QUESTIONS
        for q in row[:1]
    ]
    assert sum(row not in QUESTIONS for row in changed) == 4
    write_questions(tmp_path / "questions.csv", changed)
    second = run(localization, tmp_path / "second")
    for name in ("iti_probed", "edit_probed"):
        one, two = (
            (tmp_path / out / "artifacts" / name / "tensors.safetensors").read_bytes()
            for out in ("first", "second")
        )
        assert one == two
    assert first["arms"][0]["metrics"]["mc2"] != second["arms"][0]["metrics"]["mc2"]


def test_a_folder_of_something_else_is_left_alone(localization: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(SubveneError, match="no run of a localization experiment"):
        run(localization, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"


def test_too_few_questions_are_said_before_the_model_is_loaded(
    localization: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_questions(tmp_path / "questions.csv", QUESTIONS[:2])
    import subvene.runner.experiments.study as module

    def unexpected(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("the model was loaded")

    monkeypatch.setattr(module, "load_model", unexpected)
    with pytest.raises(SubveneError, match="questions"):
        run(localization, tmp_path / "run")
