"""No code of a repository runs: attacked through every door that loads a model, and read off every call."""

from __future__ import annotations

import ast
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import subvene.runner
from subvene.runner import IntervenedModel, load_model
from subvene.runner.cli.app import app
from subvene.runner.judges.encoder import SentenceEncoder
from subvene.runner.model import load_config, load_tokenizer
from subvene.specs import SubveneError

RUNNER = Path(subvene.runner.__file__).parent
ATTACK = """\
from pathlib import Path
Path({flag!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig): model_type = "theirs"
class Model(LlamaForCausalLM): config_class = Config
class Tokenizer(PreTrainedTokenizerFast): pass
"""
AUTO_MAP = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoModelForCausalLM": "code.Model"}


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    """Written by the repository's code, once it runs."""
    return tmp_path / "code-ran"


@pytest.fixture
def hostile(tmp_path: Path, model_folder: Path, flag: Path) -> Path:
    """A model that says it needs its own code, with everything that a model needs beside it."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for path in model_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "theirs", "architectures": ["Model"], "auto_map": AUTO_MAP}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": [None, "code.Tokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "code.py").write_text(ATTACK.format(flag=str(flag)))
    return folder


@pytest.fixture
def spec(hostile: Path, steer: Path) -> Path:
    return _redirected(steer, hostile, steer.with_name("hostile.yaml"))


@pytest.fixture
def experiment_spec(hostile: Path, experiment: Path) -> Path:
    return _redirected(experiment, hostile, experiment.with_name("hostile-run.yaml"))


@pytest.fixture
def artifact(hostile: Path, steer: Path, tmp_path: Path) -> Path:
    """An artifact of a good model, made to name the hostile one, its hashes renewed."""
    folder = tmp_path / "artifact"
    IntervenedModel.from_spec(steer, device="cpu").save_pretrained(folder)
    _redirected(folder / "intervention.yaml", hostile, folder / "intervention.yaml")
    fingerprint = json.loads((folder / "fingerprint.json").read_text())
    fingerprint["sha256"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in fingerprint["sha256"]
    }
    (folder / "fingerprint.json").write_text(json.dumps(fingerprint))
    return folder


@pytest.fixture
def yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input is text that somebody piped, and begins with what would be consent."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))


def _redirected(path: Path, model: Path, to: Path) -> Path:
    lines = path.read_text().splitlines()
    (at,) = [i for i, line in enumerate(lines) if "name: " in line and "tiny-llama" in line]
    before = lines[at].partition("name: ")[0]
    lines[at] = f"{before}name: {model}" + (", dtype: float32}" if "{" in before else "")
    to.write_text("\n".join(lines) + "\n")
    return to


DOORS: dict[str, Callable[[Path], Any]] = {
    "load_model": lambda model: load_model(str(model), device="cpu"),
    "load_config": lambda model: load_config(str(model)),
    "load_tokenizer": lambda model: load_tokenizer(str(model)),
    "a judge's encoder": lambda model: SentenceEncoder(str(model)),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.usefixtures("yes")
def test_no_door_to_a_model_runs_its_code(door: str, hostile: Path, flag: Path) -> None:
    with pytest.raises(SubveneError, match="subvene runs none"):
        DOORS[door](hostile)
    assert not flag.exists()


@pytest.mark.usefixtures("yes")
def test_a_spec_and_an_artifact_run_no_code(spec: Path, artifact: Path, flag: Path) -> None:
    for open_it, path in ((IntervenedModel.from_spec, spec), (IntervenedModel.from_pretrained, artifact)):
        with pytest.raises(SubveneError, match="subvene runs none"):
            open_it(path)
    assert not flag.exists()


COMMANDS: dict[str, list[str]] = {
    "generate a spec": ["generate", "SPEC", "-p", "hello"],
    "generate from standard input": ["generate", "SPEC", "-p", "-"],
    "generate an artifact": ["generate", "ARTIFACT", "-p", "hello"],
    "show a spec": ["show", "SPEC", "-p", "hello"],
    "show an artifact": ["show", "ARTIFACT", "-p", "hello"],
    "chat": ["chat", "ARTIFACT"],
    "run": ["run", "EXPERIMENT", "-o", "OUT"],
    "fit": ["fit", "EXPERIMENT", "-o", "OUT"],
    "export to a checkpoint": ["export", "ARTIFACT", "--to", "checkpoint", "-o", "OUT", "--approximate"],
    "export vectors": ["export", "ARTIFACT", "--to", "vector", "-o", "OUT"],
    "project": ["project", "ARTIFACT", "TALK"],
    "screen": ["screen", "ARTIFACT", "TALK"],
    "import": ["import", "VECTOR", "--layer", "1", "--model", "MODEL", "-o", "OUT"],
    "judge check": ["judge", "check", "--labels", "LABELS", "--judge", "JUDGE"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_code_whatever_is_piped_to_it(
    command: str,
    spec: Path,
    artifact: Path,
    experiment_spec: Path,
    hostile: Path,
    flag: Path,
    tmp_path: Path,
) -> None:
    talk, labels, judge = tmp_path / "talk.jsonl", tmp_path / "finetune_truth.jsonl", tmp_path / "judge.yaml"
    talk.write_text('{"prompt": "hello", "response": "i am glad"}\n')
    labels.write_text('{"prompt": "Q: a?\\nA: b\\nTrue:", "completion": " yes"}\n' * 2)
    judge.write_text(
        f"kind: transformers\ntruth_model: {{name: {hostile}}}\ninfo_model: {{name: {hostile}}}\n"
    )
    places = {
        "SPEC": spec,
        "ARTIFACT": artifact,
        "EXPERIMENT": experiment_spec,
        "OUT": tmp_path / "out",
        "MODEL": hostile,
        "TALK": talk,
        "LABELS": labels,
        "JUDGE": judge,
        "VECTOR": tmp_path / "v.pt",
    }
    torch.save(torch.ones(4, 32), tmp_path / "v.pt")
    arguments = [str(places.get(word, word)) for word in COMMANDS[command]]
    done = CliRunner().invoke(app, arguments, input="y\n" * 20)
    assert not flag.exists()
    assert done.exit_code == 1, done.output
    assert "subvene runs none" in done.output.replace("\n", " ")


# --- read off the code


def _calls(names: set[str]) -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(RUNNER.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = getattr(node, "func", None)
            if isinstance(node, ast.Call) and getattr(called, "attr", getattr(called, "id", "")) in names:
                yield f"{path.relative_to(RUNNER)}:{node.lineno}", node


def _refuses_code(call: ast.Call) -> bool:
    return any(
        keyword.arg == "trust_remote_code"
        and isinstance(keyword.value, ast.Constant)
        and keyword.value.value is False
        for keyword in call.keywords
    )


def test_every_call_that_may_load_code_says_no() -> None:
    # Ours take no code from anywhere, and peft's puts an adapter of our own writing on a loaded model.
    own = ("IntervenedModel", "PeftModel")
    calls = [
        (where, call)
        for where, call in _calls({"from_pretrained", "load_dataset", "load_dataset_builder", "pipeline"})
        if not any(name in ast.unparse(call.func) for name in own)
    ]
    assert len(calls) >= 6
    assert [where for where, call in calls if not _refuses_code(call)] == []


def test_models_are_read_through_one_door() -> None:
    places = {where.partition(":")[0] for where, call in _calls({"from_pretrained"}) if _refuses_code(call)}
    assert places == {"pretrained.py"}
