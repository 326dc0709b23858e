"""A whole persona experiment on the tiny model: every number against what it says it is, and resumption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from counting_judge import Counting

from subvene.runner import IntervenedModel, NotFiniteError, run_experiment
from subvene.runner.data.text import prompt_ids, response_ids
from subvene.runner.experiments.persona import conditions
from subvene.runner.experiments.persona.conditions import cap_warning
from subvene.runner.experiments.persona.section import Edit, SweepPoint, TraitRecord
from subvene.runner.experiments.persona.sweep import choice_of
from subvene.runner.experiments.results import Results, metric_of
from subvene.runner.experiments.scaffold import StudyResult
from subvene.runner.intervened.scoring import log_probs
from subvene.runner.reports.persona_tables import section_of
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


def run(path: Path, output: Path, **settings: Any) -> Results:
    done = run_experiment(path, output=output, **settings)
    assert isinstance(done, StudyResult)
    assert done.results == Results.load(output)
    return done.results


def trait_of(results: Results) -> TraitRecord:
    return section_of(results).traits["early"]


def points_of(results: Results) -> Sequence[SweepPoint]:
    sweep = trait_of(results).sweep
    assert sweep is not None
    return sweep.points


def texts_at(results: Results, layer: int, coefficient: float) -> list[str | None]:
    (point,) = [p for p in points_of(results) if (p.layer, p.coefficient) == (layer, coefficient)]
    return [item.text for item in point.items]


ALL = (
    "[{kind: baseline}, {kind: prompted}, {kind: opposed}, {kind: steered}, "
    "{kind: steered, name: two, coefficients: [-1, 0, 3]}, {kind: capped, percentile: 30, layers: [0, 1]}, "
    "{kind: capped, name: floor, bound: floor, percentile: 30, of: prompted}, "
    "{kind: ablated, layers: [0, 2]}]"
)


@pytest.fixture
def results(persona: Callable[..., Path], judge: Counting, tmp_path: Path) -> Results:
    return run(persona(ALL), tmp_path / "run")


def test_a_whole_run(results: Results, tmp_path: Path, loaded: tuple[Any, Any]) -> None:
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
    table = {condition.label: condition for condition in results.conditions}
    assert list(table) == labels
    assert {condition.group for condition in table.values()} == {"early"}
    # The sweep had the first two of five questions.
    asked = {results.questions[item.key].question for one in table.values() for item in one.items}
    assert asked == {"the train", "about day and sun", "is it good"}
    assert all(row.counts["responses"] == len(row.items) == 6 for row in table.values())
    (choice,) = results.choices
    able = [p for p in points_of(results) if p.coefficient > 0 and p.score is not None]
    best = max(able, key=lambda p: -1.0 if p.score is None else p.score.mean)
    assert choice.chosen == {"layer": best.layer, "coefficient": best.coefficient}
    assert [tried.point for tried in choice.tried] == [
        {"layer": p.layer, "coefficient": p.coefficient} for p in points_of(results)
    ]
    trait = trait_of(results)
    assert trait.steering is not None
    assert trait.steering.layer == best.layer
    assert table["steered"].point == {"coefficient": best.coefficient}
    kept = {label: one.artifact for label, one in table.items() if one.artifact is not None}
    same = {label for label, one in table.items() if one.point == table["steered"].point}
    assert kept == dict.fromkeys(same, "artifacts/early")

    def texts(label: str) -> list[str | None]:
        return [item.text for item in table[label].items]

    assert texts("two 0") == texts("baseline")
    assert table["two 0"].metrics["projection"] == table["baseline"].metrics["projection"]
    kl = {label: one.value("kl") for label, one in table.items()}
    assert kl["baseline"] == pytest.approx(0, abs=1e-9)
    assert (kl["two 3"] or 0) > (kl["two -1"] or 0) > 0
    assert not {"ce", "kl", "accuracy"} & table["prompted"].metrics.keys()
    assert (table["baseline"].metrics["ce"].n, table["baseline"].metrics["accuracy"].n) == (2, 3)
    assert table["baseline"].receipts == {}
    receipts = cast("list[dict[str, Any]]", table["ablated"].receipts["responses"])
    assert [r["name"] for r in receipts] == ["ablation_0", "ablation_1", "ablation_2"]
    assert all(r["edited"]["response"] > 0 for r in receipts)
    for label, share in (("capped", 0.7), ("floor", 0.3)):
        edit = Edit.of(table[label])
        assert edit.expected_share == pytest.approx(share)
        assert edit.changed_share == pytest.approx(share, abs=0.15)
        assert edit.warning is None
    assert set(Edit.of(table["capped"]).threshold or ()) == {"0", "1"}
    items = [item for one in table.values() for item in one.items]
    assert trait.correlation.n == sum(item.scores["score"] is not None for item in items)
    # The artifact steers at what was chosen, with the norm that its unit counts in.
    m = IntervenedModel.from_pretrained(tmp_path / "run" / "artifacts" / "early")
    declared = m.spec.interventions[0]
    assert (declared.layer, declared.coefficient) == (best.layer, best.coefficient)
    card = (tmp_path / "run" / "artifacts" / "early" / "README.md").read_text()
    assert "This folder is **steered** of the run below: score " in card
    assert "| early | baseline |" in card
    for name in ("report.html", "tables/conditions.csv", "tables/sweep.csv", "units.jsonl", "manifest.json"):
        assert (tmp_path / "run" / name).stat().st_size > 0


def test_a_row_of_the_sweep_is_a_run_of_its_own(
    persona: Callable[..., Path], judge: Counting, tmp_path: Path, loaded: tuple[Any, Any]
) -> None:
    """The texts of one layer and coefficient are those of a model with that one intervention."""
    from subvene.runner.intervened.rollouts import Row, rollouts, row_seed

    found = run(persona(), tmp_path / "run")
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
    assert texts_at(found, 2, 2.0) == texts
    untouched = [texts_at(found, layer, 0.0) for layer in (0, 2)]
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

    by_point = {(p.layer, p.coefficient): p.contrast for p in points_of(found)}
    assert by_point[2, 2.0] == pytest.approx(contrast(alone), abs=1e-5)
    with alone.disabled():
        assert by_point[0, 0.0] == by_point[2, 0.0] == pytest.approx(contrast(alone), abs=1e-5)
    sweep = trait_of(found).sweep
    assert sweep is not None
    assert (sweep.contrast_from, sweep.contrasts) == ("file", 2)


@pytest.mark.long
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
    assert again.conditions == whole.conditions
    assert again.sections == whole.sections
    assert (again.choices, again.questions, again.notes) == (whole.choices, whole.questions, whole.notes)
    asked = judge.asked
    steps: list[Any] = []
    run(path, output, on_step=lambda what, value: steps.append((what, value)))
    assert judge.asked == asked
    units = [value for what, value in steps if what == "unit"]
    assert all(unit["was_done"] for unit in units)
    assert ("planned", len(units)) in steps


def test_a_run_that_reads_conversations_otherwise_is_done_again(
    persona: Callable[..., Path], judge: Counting, tmp_path: Path, model_folder: Path
) -> None:
    """Variables of the template, and another template. What did not change is not done again."""
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
    path.write_text(text.replace("dtype: float32", "dtype: float32, chat_template_kwargs: {a: 1}", 1))
    assert done_now() == first
    assert done_now() == (0, first[1])
    template.write_text(template.read_text() + " ")
    assert done_now() == first


def test_deleted_vectors_are_made_again(
    persona: Callable[..., Path], judge: Counting, tmp_path: Path
) -> None:
    path = persona()
    first = run(path, tmp_path / "run")
    for stored in (tmp_path / "run" / "vectors").rglob("*.safetensors"):
        stored.unlink()
    again = run(path, tmp_path / "run")
    assert (again.conditions, again.sections) == (first.conditions, first.sections)


def test_without_written_contrasts_the_prompted_answers_serve(
    persona: Callable[..., Path], judge: Counting, tmp_path: Path, trait_file: Path
) -> None:
    path = persona()
    document = json.loads(trait_file.read_text())
    del document["contrasts"]
    trait_file.write_text(json.dumps(document))
    sweep = trait_of(run(path, tmp_path / "run")).sweep
    assert sweep is not None
    assert sweep.contrast_from == "prompted"
    assert all(point.contrast is not None for point in sweep.points)


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
    monkeypatch.setattr(
        "subvene.runner.experiments.scaffold.load_model", lambda *a, **k: pytest.fail("loaded")
    )
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
    assert any("early: capped: the cap changes" in note for note in found.notes)


def test_points_that_are_not_finite_are_marked_and_not_chosen(
    persona: Callable[..., Path], judge: Counting, tmp_path: Path
) -> None:
    conditions = "[{kind: baseline}, {kind: steered, name: two, coefficients: [0.5, 1.0e+30]}]"
    path = persona(conditions, coefficients="[0.5, 1.0e+30]")
    found = run(path, tmp_path / "run")
    marked = [point for point in points_of(found) if point.coefficient == 1e30]
    assert all(point.n == 0 and point.score is None for point in marked)
    assert ["'layer_0'" in str(marked[0].not_finite), "'layer_2'" in str(marked[1].not_finite)] == [True] * 2
    assert all(point.contrast is None for point in marked)
    (choice,) = found.choices
    assert choice.chosen is not None
    assert choice.chosen["coefficient"] == 0.5
    others = [point for point in points_of(found) if point.coefficient == 0.5]
    assert all(point.not_finite is None and point.n == 4 for point in others)
    table = {condition.label: condition for condition in found.conditions}
    assert table["two 1e+30"].counts["responses"] == 0
    assert table["two 1e+30"].metrics == {}
    assert "'" in str(table["two 1e+30"].not_finite)
    assert table["two 0.5"].counts["responses"] > 0
    assert sum("not finite" in note for note in found.notes) == 3
    assert "not finite" in (tmp_path / "run" / "report.html").read_text()


def test_a_single_condition_that_is_not_finite_fails_the_run(
    persona: Callable[..., Path], judge: Counting, tmp_path: Path
) -> None:
    path = persona("[{kind: steered, coefficients: [1.0e+30]}]", choose="")
    with pytest.raises(NotFiniteError, match="no longer finite"):
        run(path, tmp_path / "run")


def test_the_choice_is_the_best_positive_point_that_is_coherent_enough() -> None:
    sweep = TraitSweepSpec(layers=(1,), coefficients=(1.0,), choose={"by": "score", "coherence": 50})  # type: ignore[arg-type]
    rows: list[tuple[int, float, float | None, float]] = [
        (1, -1.0, 99.0, 90.0),
        (1, 0.0, 98.0, 90.0),
        (1, 1.0, 60.0, 50.0),
        (1, 2.0, 97.0, 49.0),
        (2, 1.0, 60.0, 90.0),
        (3, 1.0, None, 90.0),
    ]
    points = [
        SweepPoint(
            layer=layer,
            coefficient=coefficient,
            n=2,
            refused=0,
            score=metric_of([score]),
            coherence=metric_of([coherence]),
        )
        for layer, coefficient, score, coherence in rows
    ]
    choice = choice_of(sweep, "early", points)
    assert choice is not None
    assert (choice.condition, choice.metric) == ("early", "score")
    assert choice.chosen == {"layer": 1, "coefficient": 1.0}
    assert [tried.value for tried in choice.tried] == [score for _, _, score, _ in rows]
    none = choice_of(sweep, "early", points[:2])
    assert none is not None
    assert none.chosen is None
    assert choice_of(sweep.model_copy(update={"choose": None}), "early", points) is None
