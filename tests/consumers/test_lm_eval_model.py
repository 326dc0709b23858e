"""An artifact as a model of lm-evaluation-harness, in the harness itself; `make test-lm-eval` has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_model import write_tiny_model

from subvene import IntervenedModel, SubveneError, fit
from subvene.runner.intervened.scoring import log_probs

pytest.importorskip(
    "lm_eval", reason="lm-evaluation-harness is not installed; `make test-lm-eval` has an environment with it"
)

PAIRS = [("i am glad", "i am sad"), ("very good day", "very bad day")]
ROWS = [
    {"context": "hello how are you", "choices": ["glad", "very sad"], "gold": 0},
    {"context": "tell me about the sun and", "choices": ["it is good", "rain", "bad day"], "gold": 1},
    {"context": "the train is", "choices": ["not", "good"], "gold": 1},
]
TASKS = {
    "choices": """\
output_type: multiple_choice
doc_to_choice: choices
metric_list: [{metric: acc}]
""",
    "written": """\
output_type: generate_until
generation_kwargs: {until: ["."], max_gen_toks: 5, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    "rolling": """\
output_type: loglikelihood_rolling
metric_list: [{metric: bits_per_byte}]
""",
}
COMMON = """\
task: tiny_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_target: {target}
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm-eval")
    model = write_tiny_model(folder / "model")
    m = fit("mean_difference", model, pairs=PAIRS, key="glad", layer=1, coefficient=4.0, positions="response")
    m.save_pretrained(folder / "glad")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "tasks").mkdir()
    for name, text in TASKS.items():
        target = '"{{context}}"' if name == "rolling" else "gold"
        head = COMMON.format(name=name, rows=rows, target=target)
        (folder / "tasks" / f"{name}.yaml").write_text(head + text)
    return folder / "glad"


def asked(artifact: Path, tmp_path: Path, arguments: str) -> dict[str, list[Any]]:
    """What `subvene lm-eval` kept of each task's rows, in their order."""
    command = [sys.executable, "-c", "from subvene.runner.cli.app import main; main()", "lm-eval", "run"]
    command += ["--model", "subvene", "--model_args", f"artifact={artifact}{arguments}", "--batch_size", "2"]
    command += ["--tasks", "tiny_choices,tiny_written,tiny_rolling", "--log_samples"]
    command += ["--include_path", str(artifact.parent / "tasks"), "--output_path", str(tmp_path / "out")]
    kept = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=os.environ | kept, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for name in TASKS:
        (file,) = (tmp_path / "out").rglob(f"samples_tiny_{name}_*.jsonl")
        rows = sorted(map(json.loads, file.read_text().splitlines()), key=lambda row: row["doc_id"])
        found[name] = [row["resps"] for row in rows]
    return found


def expected(m: IntervenedModel) -> dict[str, list[Any]]:
    def ids(text: str) -> list[int]:
        return list(m.tokenizer(text)["input_ids"])

    scored = [
        [float(log_probs(m, [(ids(row["context"]), ids(choice))])[0]) for choice in row["choices"]]
        for row in ROWS
    ]
    contexts = [row["context"] for row in ROWS]
    written = [m.generate(text, chat=False, max_new_tokens=5, do_sample=False)[0] for text in contexts]
    begin = m.tokenizer.bos_token_id
    rolling = [float(log_probs(m, [([begin], ids(text))])[0]) for text in contexts]
    return {"choices": scored, "written": written, "rolling": rolling}


@pytest.mark.parametrize("arguments", ["", ",strength=0", ",strength=-2.5"])
def test_the_harness_measures_the_intervened_model(artifact: Path, tmp_path: Path, arguments: str) -> None:
    m = IntervenedModel.from_pretrained(artifact)
    if arguments == ",strength=0":
        with m.disabled():
            wanted = expected(m)
    else:
        if arguments:
            entry = m.spec.interventions[0].model_copy(update={"coefficient": -2.5})
            spec = m.spec.model_copy(update={"interventions": (entry,)})
            m = IntervenedModel.from_spec(spec, model=m.model, tokenizer=m.tokenizer, tensors=m.tensors)
        wanted = expected(m)
    found = asked(artifact, tmp_path, arguments)
    for row, values in zip(found["choices"], wanted["choices"], strict=True):
        assert [float(answer[0][0]) for answer in row] == pytest.approx(values, abs=1e-4)
    assert [row[0][0].split() for row in found["written"]] == [text.split() for text in wanted["written"]]
    assert [float(row[0][0]) for row in found["rolling"]] == pytest.approx(wanted["rolling"], abs=1e-4)


def test_a_response_that_greedy_decoding_gives_is_told(artifact: Path) -> None:
    from lm_eval.api.instance import Instance

    import subvene.runner.engines.lm_eval_model as module

    model = module.HarnessModel(str(artifact), batch_size=2)
    context = "hello how are you"
    said = IntervenedModel.from_pretrained(artifact).generate(
        context, chat=False, max_new_tokens=3, do_sample=False
    )[0]
    texts = [(context, f" {said.strip()}"), (context, " sad sad sad"), (context, " not")]
    found = model.loglikelihood([Instance("loglikelihood", {}, text, i) for i, text in enumerate(texts)])
    assert [is_greedy for _, is_greedy in found] == [True, False, False]


def test_options_that_are_not_carried_out_are_refused(artifact: Path) -> None:
    import subvene.runner.engines.lm_eval_model as module

    with pytest.raises(SubveneError, match="model_args: peft: expected artifact, strength"):
        module.HarnessModel(str(artifact), peft="other")
    with pytest.raises(SubveneError, match="batch_size: expected a number, found 'auto'"):
        module.HarnessModel(str(artifact), batch_size="auto")
