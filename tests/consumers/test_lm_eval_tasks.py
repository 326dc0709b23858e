"""`kind: lm_eval` in an experiment, in the harness itself; `make test-lm-eval` has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_model import write_tiny_model

from subvene.runner import IntervenedModel, run_experiment
from subvene.runner.intervened.scoring import log_probs
from subvene.specs import SubveneError

pytest.importorskip(
    "lm_eval", reason="lm-evaluation-harness is not installed; `make test-lm-eval` has an environment with it"
)

ROWS = [
    {"context": "hello how are you", "choices": ["glad", "very sad"], "gold": 0},
    {"context": "tell me about the sun and", "choices": ["it is good", "rain", "bad day"], "gold": 1},
    {"context": "the train is", "choices": ["not", "good"], "gold": 1},
    {"context": "i am", "choices": ["happy", "gloomy"], "gold": 0},
]
TASK = """\
task: tiny_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_target: gold
"""
TASKS = {
    "choices": "output_type: multiple_choice\ndoc_to_choice: choices\nmetric_list: [{metric: acc}]\n",
    "written": "output_type: generate_until\n"
    "generation_kwargs: {until: ['.'], max_gen_toks: 3, do_sample: false}\n"
    "metric_list: [{metric: exact_match}]\n",
    "rolling": "output_type: loglikelihood_rolling\nmetric_list: [{metric: bits_per_byte}]\n",
}
SPEC = """\
subvene: 1
model: {name: %s}
fit:
  recipe: mean_difference
  key: glad
  pairs: {texts: [{positive: i am glad, negative: i am sad}, {positive: good day, negative: bad day}]}
interventions:
- {kind: steering, name: glad, layer: 1, vector: {key: glad}, coefficient: 4.0, positions: response}
conditions:
- {name: untouched, interventions: []}
- {name: glad}
- {name: asked, interventions: [], system: you are very glad}
evaluate:
- {kind: lm_eval, tasks: [tiny_choices, tiny_written], include: tasks, limit: 4, batch_size: 2}
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in TASKS.items():
        task = TASK.format(name=name, rows=tmp_path / "rows.jsonl") + text
        task = task.replace("gold", "'{{context}}'") if name == "rolling" else task
        (tmp_path / "tasks" / f"{name}.yaml").write_text(task)
    (tmp_path / "file.yaml").write_text(SPEC % write_tiny_model(tmp_path / "model"))
    return tmp_path / "file.yaml"


def right(m: IntervenedModel, before: str = "") -> list[float]:
    """Of each row whether the right choice has the largest log-probability."""
    found = []
    for row in ROWS:
        context = m.tokenizer(before + row["context"])["input_ids"]
        totals = [
            float(log_probs(m, [(context, m.tokenizer(choice)["input_ids"])])[0]) for choice in row["choices"]
        ]
        found.append(float(totals.index(max(totals)) == row["gold"]))
    return found


def test_every_condition_is_measured_with_its_edits(spec: Path, tmp_path: Path) -> None:
    results = run_experiment(spec, output=tmp_path / "run").results
    by_name = {one.name: one for one in results.conditions}
    m = IntervenedModel.from_pretrained(tmp_path / "run" / str(by_name["glad"].artifact))
    expected = {"glad": right(m)}
    with m.disabled():
        expected["untouched"] = right(m)
        expected["asked"] = right(m, "you are very glad ")
    for name, values in expected.items():
        scores = [
            item.scores["tiny_choices_acc"]
            for item in by_name[name].items
            if "tiny_choices_acc" in item.scores
        ]
        assert scores == values, name
        metric = by_name[name].metrics["tiny_choices_acc"]
        assert (metric.mean, metric.n) == (sum(values) / 4, 4)
    assert by_name["glad"].receipts["lm_eval"]
    assert not by_name["untouched"].receipts["lm_eval"]
    assert any("tiny_written_exact_match" in item.scores for item in by_name["glad"].items)
    assert "| tiny choices acc |" in (tmp_path / "run" / "tables" / "results.md").read_text()

    def done(what: str, value: Any) -> None:
        if what == "unit":
            assert value["was_done"]

    run_experiment(spec, output=tmp_path / "run", on_step=done)


REFUSED = {
    "tiny_choice": "'tiny_choice' is no task of lm-evaluation-harness; did you mean tiny_choices",
    "mmlu": "'mmlu' is a group of tasks: name those of its tasks",
}


@pytest.mark.parametrize("task", REFUSED)
def test_names_that_are_no_tasks_are_refused_before_the_model_is_loaded(
    spec: Path, tmp_path: Path, task: str
) -> None:
    spec.write_text(spec.read_text().replace("tiny_choices, tiny_written", task))
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(SubveneError, match=REFUSED[task]):
        run_experiment(spec, output=tmp_path / "run")


def test_a_task_without_a_number_a_document_is_refused(spec: Path, tmp_path: Path) -> None:
    spec.write_text(spec.read_text().replace("tiny_choices, tiny_written", "tiny_rolling"))
    with pytest.raises(SubveneError, match="tiny_rolling: none of its metrics is the mean of a number"):
        run_experiment(spec, output=tmp_path / "run")
