"""An artifact as a model of Inspect's, in Inspect itself; `make test-inspect` has an environment with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_model import write_tiny_model

from subvene import IntervenedModel, fit

pytest.importorskip(
    "inspect_ai", reason="Inspect is not installed; `make test-inspect` has an environment with it"
)

PAIRS = [("i am glad", "i am sad"), ("very good day", "very bad day")]
QUESTIONS = ["how are you ?", "tell me about the train", "hello world"]
SYSTEM = "you are very good"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    model = write_tiny_model(folder / "model")
    m = fit("mean_difference", model, pairs=PAIRS, key="glad", layer=1, coefficient=4.0, positions="response")
    m.save_pretrained(folder / "glad")
    return folder / "glad"


def evaluated(artifact: Path, tmp_path: Path, solvers: Any = None, **options: Any) -> Any:
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate, system_message

    task = Task(
        dataset=[Sample(input=question, target="glad") for question in QUESTIONS],
        solver=solvers or [system_message(SYSTEM), generate()],
        scorer=includes(),
    )
    options = {"temperature": 0.0, "max_tokens": 5, "display": "none", "log_dir": str(tmp_path)} | options
    (log,) = eval(task, model=f"subvene/{artifact}", **options)
    return log


def texts(log: Any) -> list[str]:
    assert log.status == "success", log.error
    return [sample.output.completion.strip() for sample in sorted(log.samples, key=lambda one: one.id)]


def test_its_answers_are_those_of_the_intervened_model(artifact: Path, tmp_path: Path) -> None:
    m = IntervenedModel.from_pretrained(artifact)
    kwargs: dict[str, Any] = {"system": SYSTEM, "max_new_tokens": 5, "do_sample": False, "eos_token_id": 2}
    expected = [m.generate(question, **kwargs)[0].strip() for question in QUESTIONS]
    with m.disabled():
        untouched = [m.generate(question, **kwargs)[0].strip() for question in QUESTIONS]
    assert expected != untouched
    log = evaluated(artifact, tmp_path)
    assert texts(log) == expected
    (receipt,) = log.samples[0].output.metadata["receipt"]
    assert receipt["name"] == "glad"
    assert receipt["edited"] > 0
    assert texts(evaluated(artifact, tmp_path, model_args={"strength": 0})) == untouched


def test_samples_with_a_seed_are_the_same_again(artifact: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "seed": 3}
    first = texts(evaluated(artifact, tmp_path, **options))
    assert texts(evaluated(artifact, tmp_path, **options)) == first
    assert texts(evaluated(artifact, tmp_path, **options | {"seed": 4})) != first


def test_what_is_not_done_is_refused(artifact: Path, tmp_path: Path) -> None:
    from inspect_ai.solver import generate, use_tools
    from inspect_ai.tool import bash

    log = evaluated(artifact, tmp_path, logprobs=True)
    assert "logprobs: not done by a subvene model" in str(log.error)
    log = evaluated(artifact, tmp_path, solvers=[use_tools(bash()), generate()])
    assert "tools: a subvene model calls none, found bash" in str(log.error)


TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

@task
def tiny():
    return Task(dataset=[Sample(input="hello", target="glad")], solver=generate(), scorer=includes())
"""


def test_the_command_finds_it_by_its_entry_point(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(TASK)
    command = [sys.executable, "-m", "inspect_ai", "eval", "task.py", "--model", f"subvene/{artifact}"]
    command += ["--display", "plain", "--max-tokens", "3", "--log-dir", "logs"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "logs").glob("*.eval"))
