"""A localization experiment end to end on a tiny model: what is measured, reused, and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import connect, serve_hub
from small_experiments import LOCALIZATION
from tiny_questions import PRIMER, QUESTIONS, TEXTS, write_questions

from subvene.runner import IntervenedModel, run_experiment
from subvene.runner.artifacts.hub import push
from subvene.runner.experiments.localization.section import section_of
from subvene.runner.experiments.results import Condition, Results
from subvene.runner.experiments.rows import METRICS
from subvene.runner.experiments.scaffold import StudyResult
from subvene.runner.reports.documents import in_markdown
from subvene.runner.reports.localization_tables import document
from subvene.runner.reports.pushed import measured_of
from subvene.specs import SubveneError

EXPERIMENT = LOCALIZATION + "seed: 1\n"
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
    return write(EXPERIMENT, "localization.yaml")


def run(path: Path, output: Path, steps: list[dict[str, Any]] | None = None) -> Results:
    def step(what: str, value: Any) -> None:
        if what == "unit" and steps is not None:
            steps.append(value)

    done = run_experiment(path, output=output, on_step=step)
    assert isinstance(done, StudyResult)
    return done.results


def named(results: Results) -> dict[str, Condition]:
    return {condition.name: condition for condition in results.conditions}


@pytest.mark.long
def test_end_to_end(localization: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[dict[str, Any]] = []
    results = run(localization, tmp_path / "run", steps)
    arms, section = named(results), section_of(results)
    records, choices = section.arms, {choice.condition: choice for choice in results.choices}
    assert list(arms) == list(records) == ARMS
    assert not any(
        step["was_done"] for step in steps if step["what"].startswith("edit_") and "training" in step["what"]
    )

    # Nothing of the test was fitted or chosen on: the questions are told apart by the text alone.
    tested = set(results.questions)
    assert len(tested) == 4
    assert section.split is not None
    split = {"train": 5, "validation": 3, "test": 4, "tuning": 8}
    assert section.split.model_dump() == split | {"pairs": section.split.pairs}
    for arm in arms.values():
        assert {item.key for item in arm.items} == tested
        assert {"true", "mc1", "mc2", "ce", "kl"} <= arm.metrics.keys()
        mc2, kl = arm.metrics["mc2"], arm.metrics["kl"]
        assert kl.low is not None
        assert mc2.low is not None
        assert mc2.high is not None
        assert mc2.low <= mc2.mean <= mc2.high

    # The same heads for ITI and for the edit, as the probes rank them; and probing accuracy beside them.
    assert records["iti_probed"].heads == records["edit_probed"].heads
    for i in (1, 2):
        assert records[f"iti_random_{i}"].heads == records[f"edit_random_{i}"].heads
        assert records[f"edit_single_{i}"].n_heads == 1
    assert section.probes is not None
    best = sorted((a for row in section.probes.accuracy for a in row), reverse=True)[:2]
    assert records["edit_probed"].probe_accuracy == pytest.approx(sum(best) / 2)

    # One of the points was chosen, by what it gave on validation.
    assert choices.keys() == arms.keys() - {"baseline"}
    for name, arm in arms.items():
        if name == "baseline":
            assert arm.value("kl") == pytest.approx(0, abs=1e-7)
            continue
        values = [tried.value for tried in choices[name].tried]
        assert len(values) == 2
        best_value = max(value for value in values if value is not None)
        assert arm.point == choices[name].chosen == choices[name].tried[values.index(best_value)].point
        training = records[name].training
        if training and training.best_step == 0:
            # No step lowered the validation loss: the edit is none, and the verdict names it.
            assert arm.value("kl") == pytest.approx(0, abs=1e-7)
            assert any(name in sentence and "do nothing" in sentence for sentence in section.verdict)
        else:
            assert (arm.value("kl") or 0) > 1e-6, name
    assert {e.family for e in section.evidence} == {"iti", "edit"}
    assert section.verdict

    # What was measured is what is saved.
    place = arms["edit_probed"].artifact
    assert place is not None
    artifact = IntervenedModel.from_pretrained(tmp_path / "run" / place)
    assert {int(layer) for layer in artifact.provenance["heads"]} == (
        records["edit_probed"].heads or {}
    ).keys()
    for name in ("results.json", "report.html", "manifest.json", "tables/arms.csv", "tables/evidence.csv"):
        assert (tmp_path / "run" / name).is_file()
    assert Results.load(tmp_path / "run") == results

    # What is pushed of it brings its numbers: its own, and the table of all arms.
    with serve_hub(tmp_path / "server") as server:
        connect(monkeypatch, server, tmp_path / "home")
        source = tmp_path / "run" / "artifacts" / "edit_probed"
        for given in (None, measured_of(source), measured_of(source, tmp_path / "run" / "results.json")):
            push(source, "ann/edit", measured=given)
            card = server.content("ann/edit", "README.md").decode()
            own = next(
                line for line in card.splitlines() if line.startswith("This folder is **edit_probed** of")
            )
            for metric, measured in arms["edit_probed"].metrics.items():
                assert f"{METRICS.get(metric, metric)} {measured.mean:.4g}" in own
            assert in_markdown(document(results)) in card
            assert "| edit, random heads × 2 |" in card
            del server.repositories["ann/edit"]

    # A second run does nothing again and finds the same; two more draws train only these.
    steps.clear()
    assert run(localization, tmp_path / "run", steps).conditions == results.conditions
    assert all(step["was_done"] for step in steps)
    steps.clear()
    localization.write_text(localization.read_text().replace("random: 2", "random: 3"))
    more = run(localization, tmp_path / "run", steps)
    fresh = {step["what"].split(":")[0].split(",")[0] for step in steps if not step["was_done"]}
    fresh = {name.removesuffix(" on validation") for name in fresh}
    assert fresh == {"iti_random_3", "edit_random_3"}
    kept = named(more)
    assert all(kept[name] == arms[name] for name in ARMS)
    assert all(section_of(more).arms[name] == records[name] for name in ARMS)


def test_an_edit_trained_among_others_is_the_edit_trained_alone(localization: Path, tmp_path: Path) -> None:
    text = localization.read_text().replace("tau: [0.5, 1], ", "")
    arms = "arms: [edit_probed, edit_random]"
    localization.write_text(text.replace("kind: localization,", f"kind: localization, {arms},"))
    together = run(localization, tmp_path / "together").conditions
    localization.write_text(text.replace("kind: localization,", "kind: localization, arms: [edit_probed],"))
    (_, alone) = run(localization, tmp_path / "alone").conditions
    for metric in ("mc2", "kl"):
        assert together[1].value(metric) == pytest.approx(alone.value(metric), abs=1e-4)


def test_changed_test_questions_change_no_edit(localization: Path, tmp_path: Path) -> None:
    arms = "kind: localization, arms: [iti_probed, edit_probed],"
    localization.write_text(localization.read_text().replace("kind: localization,", arms))
    first = run(localization, tmp_path / "first")
    tested = {one.question for one in first.questions.values()}
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
    assert first.conditions[0].value("mc2") != second.conditions[0].value("mc2")


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
    import subvene.runner.experiments.scaffold as module

    def unexpected(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("the model was loaded")

    monkeypatch.setattr(module, "load_model", unexpected)
    with pytest.raises(SubveneError, match="questions"):
        run(localization, tmp_path / "run")
