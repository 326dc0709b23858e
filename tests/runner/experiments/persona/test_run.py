"""A whole persona experiment on the tiny model: every number against what it says it is, and resumption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from counting_judge import Counting

from subvene.runner import IntervenedModel, NotFiniteError, run_experiment
from subvene.runner.data.text import prompt_ids, response_ids
from subvene.runner.experiments.persona import conditions
from subvene.runner.experiments.persona.conditions import cap_warning
from subvene.runner.experiments.persona.sweep import best_point
from subvene.runner.experiments.study import StudyResult
from subvene.runner.intervened.scoring import log_probs
from subvene.specs import SpecError, SubveneError, TraitSweepSpec

SAMPLING = "{max_new_tokens: 6, rollouts: 2}"


@pytest.fixture
def persona(write: Callable[..., Path], trait_file: Path, document: dict[str, Any]) -> Callable[..., Path]:
    """Writes a persona experiment; words of it are replaced by keyword."""
    document["contrasts"] = [
        {"question": "are you sad", "pos": "very good day", "neg": "not happy"},
        {"question": "tell me", "pos": "glad sun .", "neg": "gloomy rain it is"},
    ]
    trait_file.write_text(json.dumps(document))

    def make(
        conditions: str = "[{kind: baseline}, {kind: prompted}, {kind: steered}]", **fields: str
    ) -> Path:
        swept = {"layers": "[0, 2]", "coefficients": "[-1, 0, 1, 2]", "questions": "2", "contrasts": "2"}
        swept |= {"choose": "{by: score, coherence: 0}"} | fields
        sweep = "".join(f"    {name}: {value}\n" for name, value in swept.items() if value)
        return write(
            f"""fit:
  recipe: persona
  traits: [{{name: early, file: {trait_file}}}]
  sampling: {SAMPLING}
  keep: {{positive: 0, negative: 100, coherence: 0}}
interventions:
  - kind: steering
    name: s
    layer: 1
    vector: {{key: early}}
    coefficient: 0.5
    unit: residual_norm
    positions: response
evaluate:
  - kind: trait_sweep
    sampling: {SAMPLING}
{sweep}  - kind: trait_conditions
    sampling: {SAMPLING}
    conditions: {conditions}
    cost: {{texts: 2, max_tokens: 16, choices: 3}}
""",
            "persona.yaml",
        )

    return make


def run(path: Path, output: Path, **settings: Any) -> dict[str, Any]:
    done = run_experiment(path, output=output, **settings)
    assert isinstance(done, StudyResult)
    assert done.results == json.loads((output / "results.json").read_text())
    return done.results


ALL = (
    "[{kind: baseline}, {kind: prompted}, {kind: opposed}, {kind: steered}, "
    "{kind: steered, name: two, coefficients: [-1, 0, 3]}, {kind: capped, percentile: 30, layers: [0, 1]}, "
    "{kind: capped, name: floor, bound: floor, percentile: 30, of: prompted}, "
    "{kind: ablated, layers: [0, 2]}]"
)


@pytest.fixture
def results(persona: Callable[..., Path], judge: Counting, tmp_path: Path) -> dict[str, Any]:
    return run(persona(ALL), tmp_path / "run")["traits"]["early"]


def test_a_whole_run(results: dict[str, Any], tmp_path: Path, loaded: tuple[Any, Any]) -> None:
    labels = [
        "baseline",
        "prompted",
        "opposed",
        "steered",
        "two -1",
        "two 0",
        "two 3",
        "capped",
        "floor",
        "ablated",
    ]
    table = {row["label"]: row for row in results["conditions"]}
    assert list(table) == labels
    # The sweep had the first two of five questions.
    assert {one["question"] for one in results["responses"]} == {
        "the train",
        "about day and sun",
        "is it good",
    }
    assert all(row["n"] == 6 for row in table.values())
    best = max((r for r in results["sweep"] if r["coefficient"] > 0), key=lambda r: r["score"])
    assert (results["chosen"]["layer"], results["chosen"]["coefficient"]) == (
        best["layer"],
        best["coefficient"],
    )
    assert (results["layer"], table["steered"]["coefficient"]) == (best["layer"], best["coefficient"])

    def texts(label: str) -> list[str]:
        return [one["text"] for one in results["responses"] if one["condition"] == label]

    assert texts("two 0") == texts("baseline")
    assert table["two 0"]["projection"] == table["baseline"]["projection"]
    assert table["baseline"]["cost"]["kl"] == pytest.approx(0, abs=1e-9)
    assert table["two 3"]["cost"]["kl"] > table["two -1"]["cost"]["kl"] > 0
    assert table["prompted"]["cost"] is None
    assert table["baseline"]["receipt"] is None
    assert [r["name"] for r in table["ablated"]["receipt"]] == ["ablation_0", "ablation_1", "ablation_2"]
    assert all(r["edited"]["response"] > 0 for r in table["ablated"]["receipt"])
    for label, share in (("capped", 0.7), ("floor", 0.3)):
        assert table[label]["expected_share"] == pytest.approx(share)
        assert table[label]["changed_share"] == pytest.approx(share, abs=0.15)
        assert table[label]["warning"] is None
    assert set(table["capped"]["threshold"]) == {"0", "1"}
    # The artifact steers at what was chosen, with the norm that its unit counts in.
    m = IntervenedModel.from_pretrained(tmp_path / "run" / "artifacts" / "early")
    declared = m.spec.interventions[0]
    assert (declared.layer, declared.coefficient) == (best["layer"], best["coefficient"])
    for name in ("report.html", "tables/conditions.csv", "tables/sweep.csv", "units.jsonl", "manifest.json"):
        assert (tmp_path / "run" / name).stat().st_size > 0


def test_a_row_of_the_sweep_is_a_run_of_its_own(
    persona: Callable[..., Path], judge: Counting, tmp_path: Path, loaded: tuple[Any, Any]
) -> None:
    """The texts of one layer and coefficient are those of a model with that one intervention."""
    from subvene.runner.intervened.rollouts import Row, rollouts, row_seed

    found = run(persona(), tmp_path / "run")["traits"]["early"]
    m = IntervenedModel.from_pretrained(tmp_path / "run" / "artifacts" / "early")
    spec = m.spec.interventions[0].model_copy(update={"layer": 2, "coefficient": 2.0})
    alone = IntervenedModel.from_spec(
        m.spec.model_copy(update={"interventions": (spec,)}),
        model=m.model,
        tokenizer=m.tokenizer,
        tensors=m.tensors,
    )
    rows = [
        Row(tuple(prompt_ids(m.tokenizer, q)), row_seed(0, "early", q, None, r), max_new_tokens=6)
        for q in ("are you glad", "tell me")
        for r in range(2)
    ]
    texts = [one.text for one in rollouts(alone, rows)[0]]
    swept = [r["text"] for r in found["sweep_responses"] if (r["layer"], r["coefficient"]) == (2, 2.0)]
    assert swept == texts
    untouched = [
        [r["text"] for r in found["sweep_responses"] if (r["layer"], r["coefficient"]) == (layer, 0.0)]
        for layer in (0, 2)
    ]
    assert (
        untouched[0]
        == untouched[1]
        == [one.text for one in rollouts(IntervenedModel.plain(m.model, m.tokenizer), rows)[0]]
    )

    def contrast(model: IntervenedModel) -> float:
        sides = (
            ("are you sad", "very good day", "not happy"),
            ("tell me", "glad sun .", "gloomy rain it is"),
        )
        total = 0.0
        for question, *answers in sides:
            ids = [response_ids(m.tokenizer, answer) for answer in answers]
            values, _ = log_probs(model, [(prompt_ids(m.tokenizer, question), one) for one in ids])
            total += float(values[0]) / len(ids[0]) - float(values[1]) / len(ids[1])
        return total / 2

    by_point = {(r["layer"], r["coefficient"]): r["contrast"] for r in found["sweep"]}
    assert by_point[2, 2.0] == pytest.approx(contrast(alone), abs=1e-5)
    with alone.disabled():
        assert by_point[0, 0.0] == by_point[2, 0.0] == pytest.approx(contrast(alone), abs=1e-5)
    assert found["contrast_from"] == "file"


def test_taken_up_where_it_was_stopped(
    persona: Callable[..., Path], judge: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, output = persona(ALL), tmp_path / "run"
    seen: list[dict[str, Any]] = []
    whole = run(
        path, tmp_path / "other", on_step=lambda what, value: seen.append(value) if what == "unit" else None
    )
    # What a coefficient of 0 gives is what the baseline gave.
    twice = sum(unit["was_done"] for unit in seen)
    assert twice <= 4
    real, left = conditions.respond, [3]

    def dying(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(conditions, "respond", dying)
    with pytest.raises(KeyboardInterrupt):
        run(path, output)
    monkeypatch.setattr(conditions, "respond", real)
    assert not (output / "results.json").exists()
    asked, seen[:] = judge.asked, []
    again = run(path, output, on_step=lambda what, value: seen.append(value) if what == "unit" else None)
    assert judge.asked < 2 * asked
    assert sum(unit["was_done"] for unit in seen) >= twice + 5
    assert again["traits"] == whole["traits"]
    assert again["geometry"] == whole["geometry"]
    asked = judge.asked
    steps: list[Any] = []
    run(path, output, on_step=lambda what, value: steps.append((what, value)))
    assert judge.asked == asked
    units = [value for what, value in steps if what == "unit"]
    assert all(unit["was_done"] for unit in units)
    assert ("planned", len(units)) in steps


@pytest.mark.parametrize("fields", ["chat_template_kwargs: {a: 1}", None])
def test_a_run_that_reads_conversations_otherwise_is_done_again(
    persona: Callable[..., Path], judge: Counting, tmp_path: Path, model_folder: Path, fields: str | None
) -> None:
    """None: the tokenizer's own template is another. What did not change is not done again."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (template,) = folder.glob("*.jinja")
    template.write_text("{% if a %}{% endif %}" + template.read_text())
    path, output = persona("[{kind: baseline}]"), tmp_path / "run"
    text = path.read_text().replace(str(model_folder), str(folder))
    path.write_text(text)

    def done_now() -> tuple[int, int]:
        seen: list[dict[str, Any]] = []
        run(path, output, on_step=lambda what, value: seen.append(value) if what == "unit" else None)
        return sum(not unit["was_done"] for unit in seen), len(seen)

    first = done_now()
    assert first[0]
    assert done_now() == (0, first[1])
    if fields is None:
        template.write_text(template.read_text() + " ")
    else:
        path.write_text(text.replace("dtype: float32", f"dtype: float32, {fields}", 1))
    assert done_now() == first
    assert done_now() == (0, first[1])


def test_deleted_vectors_are_made_again(
    persona: Callable[..., Path], judge: Counting, tmp_path: Path
) -> None:
    path = persona()
    first = run(path, tmp_path / "run")
    for stored in (tmp_path / "run" / "vectors").rglob("*.safetensors"):
        stored.unlink()
    assert run(path, tmp_path / "run")["traits"] == first["traits"]


def test_without_written_contrasts_the_prompted_answers_serve(
    persona: Callable[..., Path], judge: Counting, tmp_path: Path, trait_file: Path
) -> None:
    path = persona()
    document = json.loads(trait_file.read_text())
    del document["contrasts"]
    trait_file.write_text(json.dumps(document))
    found = run(path, tmp_path / "run")["traits"]["early"]
    assert found["contrast_from"] == "prompted"
    assert all(record["contrast"] is not None for record in found["sweep"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": "[0, 3]"}, "trait_sweep.layers: expected layers from 0 to 2 for this model, found 3"),
        ({"questions": "5"}, "takes 5 of 5 evaluation questions and leaves none"),
        ({"conditions": "[{kind: ablated, layers: [1, 3]}]"}, "ablated: expected layers from 0 to 2"),
        ({"edit": ("coefficient: 0.5", "coefficient: [0.5, 1.0]")}, "s: coefficient: expected one number"),
    ],
)
def test_refused_before_the_model_is_loaded(
    persona: Callable[..., Path],
    judge: Counting,
    tmp_path: Path,
    fields: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("subvene.runner.experiments.study.load_model", lambda *a, **k: pytest.fail("loaded"))
    edit = fields.pop("edit", None)
    path = persona(**fields)
    if edit is not None:
        path.write_text(path.read_text().replace(*edit))
    with pytest.raises(SubveneError, match=message):
        run(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ("[{kind: capped}]", "a condition of this list: there is no 'baseline'"),
        ("[{kind: baseline}, {kind: baseline}]", "a name of its own"),
        ("[{kind: ablated, layers: [2, 1]}]", "the second one no smaller than the first"),
        ("[]", "a non-empty list of conditions"),
    ],
)
def test_refused_when_read(
    persona: Callable[..., Path], tmp_path: Path, conditions: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        run(persona(conditions), tmp_path / "run")


def test_a_trait_is_steered_along_once(persona: Callable[..., Path], tmp_path: Path) -> None:
    path = persona()
    second = "  - {kind: steering, name: t, layer: 2, vector: {key: early}, coefficient: 1}\nevaluate:"
    path.write_text(path.read_text().replace("evaluate:", second))
    with pytest.raises(SpecError, match=r"interventions\[1\].vector.key: expected another trait"):
        run(path, tmp_path / "run")


def test_a_folder_of_something_else(persona: Callable[..., Path], judge: Counting, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(SubveneError, match="no run of a persona experiment"):
        run(persona(), tmp_path / "run")


def test_a_cap_on_the_wrong_side_is_told() -> None:
    """A ceiling at the 25th percentile changes three quarters of the tokens; a floor there one quarter."""
    assert cap_warning("capped", {"changed_share": 0.73}, 0.75) is None
    assert "25% of the tokens" in str(cap_warning("capped", {"changed_share": 0.25}, 0.75))
    assert "expected 75%" in str(cap_warning("capped", {"changed_share": 0.0}, 0.75))


def test_a_flipped_cap_is_caught_by_its_receipt(
    persona: Callable[..., Path], judge: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = conditions._entries

    def flipped(arm: Any, thresholds: Any, subject: Any) -> Any:
        entries = real(arm, thresholds, subject)
        swap = {"max": "min", "min": "max"}
        return [
            type(e).model_validate({swap.get(k, k): v for k, v in e.model_dump(exclude_none=True).items()})
            if arm.condition.kind == "capped"
            else e
            for e in entries
        ]

    monkeypatch.setattr(conditions, "_entries", flipped)
    found = run(persona("[{kind: baseline}, {kind: capped, percentile: 10}]"), tmp_path / "run")
    assert any("early: capped: the cap changes" in warning for warning in found["warnings"])


def test_points_that_are_not_finite_are_marked_and_not_chosen(
    persona: Callable[..., Path], judge: Counting, tmp_path: Path
) -> None:
    conditions = "[{kind: baseline}, {kind: steered, name: two, coefficients: [0.5, 1.0e+30]}]"
    path = persona(conditions, coefficients="[0.5, 1.0e+30]")
    found = run(path, tmp_path / "run")
    sweep = found["traits"]["early"]["sweep"]
    marked = [point for point in sweep if point["coefficient"] == 1e30]
    assert all(point["n"] == 0 and point["score"] is None for point in marked)
    assert ["'layer_0'" in marked[0]["not_finite"], "'layer_2'" in marked[1]["not_finite"]] == [True, True]
    assert all(point["contrast"] is None for point in marked)
    assert found["traits"]["early"]["chosen"]["coefficient"] == 0.5
    others = [point for point in sweep if point["coefficient"] == 0.5]
    assert all("not_finite" not in point and point["n"] == 4 for point in others)
    table = {row["label"]: row for row in found["traits"]["early"]["conditions"]}
    assert table["two 1e+30"]["n"] == 0
    assert table["two 1e+30"]["cost"] is None
    assert "'" in table["two 1e+30"]["not_finite"]
    assert table["two 0.5"]["n"] > 0
    assert sum("not finite" in warning for warning in found["warnings"]) == 3
    assert "not finite" in (tmp_path / "run" / "report.html").read_text()


def test_a_single_condition_that_is_not_finite_fails_the_run(
    persona: Callable[..., Path], judge: Counting, tmp_path: Path
) -> None:
    path = persona("[{kind: steered, coefficients: [1.0e+30]}]", choose="")
    with pytest.raises(NotFiniteError, match="no longer finite"):
        run(path, tmp_path / "run")


def test_best_point() -> None:
    sweep = TraitSweepSpec(layers=(1,), coefficients=(1.0,), choose={"by": "score", "coherence": 50})  # type: ignore[arg-type]
    rows = [
        {"layer": 1, "coefficient": -1.0, "score": 99.0, "coherence": 90.0},
        {"layer": 1, "coefficient": 0.0, "score": 98.0, "coherence": 90.0},
        {"layer": 1, "coefficient": 1.0, "score": 60.0, "coherence": 50.0},
        {"layer": 1, "coefficient": 2.0, "score": 97.0, "coherence": 49.0},
        {"layer": 2, "coefficient": 1.0, "score": 60.0, "coherence": 90.0},
        {"layer": 3, "coefficient": 1.0, "score": None, "coherence": 90.0},
    ]
    assert best_point(sweep, rows) == {
        "layer": 1,
        "coefficient": 1.0,
        "by": "score",
        "coherence_at_least": 50.0,
    }
    assert best_point(sweep, rows[:2]) is None
