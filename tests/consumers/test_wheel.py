"""The wheel in a fresh environment, from another folder: what somebody has after `pip install subvene`.

`make test-wheel` builds a source archive, the wheel of that archive, and an environment with the wheel in it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from checkout import ROOT

Ask = Callable[..., str]


@pytest.fixture
def call(consumer: Callable[[str], Path], tmp_path: Path) -> Ask:
    """Runs a program of the fresh environment in an empty folder; what it printed."""
    programs = consumer("wheel").parent

    def call(program: str, *arguments: str) -> str:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "SUBVENE"))}
        done = subprocess.run(
            [programs / program, *arguments],
            cwd=tmp_path,
            env=kept | {"HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    return call


def test_it_is_the_installed_package_that_is_imported(call: Ask, tmp_path: Path) -> None:
    said = call("python", "-c", "import subvene, subvene.specs as s; print(subvene.__file__, s.__file__)")
    for file in said.split():
        assert "site-packages" in file
        assert ROOT / ".venv" not in Path(file).parents
    assert (
        call("subvene", "--version")
        == f"subvene {call('python', '-c', 'import subvene as s; print(s.__version__)')}"
    )


def test_a_file_that_init_writes_and_a_shipped_example_are_valid(call: Ask, tmp_path: Path) -> None:
    call("subvene", "init", "steer", "mine")
    assert call("subvene", "validate", "mine/steer.yaml") == "mine/steer.yaml: ok"
    code = "from importlib.resources import files; print(files('subvene.examples') / 'quickstart.yaml')"
    example = call("python", "-c", code)
    assert call("subvene", "validate", example).replace("\n", "").endswith(": ok")


def test_a_type_checker_understands_a_client(consumer: Callable[[str], Path], tmp_path: Path) -> None:
    wheel, pyright = consumer("wheel"), consumer("pyright").parent / "pyright"
    shutil.copy(Path(__file__).with_name("client.py"), tmp_path)
    settings = {"include": ["client.py"], "typeCheckingMode": "strict", "pythonVersion": "3.11"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))

    def problems() -> dict[str, list[str]]:
        command = [pyright, "-p", tmp_path, "--pythonpath", wheel, "--outputjson"]
        said = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=300).stdout)
        assert said["summary"]["filesAnalyzed"] == 1
        found = [(one["rule"], one["message"]) for one in said["generalDiagnostics"]]
        return {rule: [message for other, message in found if other == rule] for rule, _ in found}

    assert problems() == {}
    with (tmp_path / "client.py").open("a") as client:
        client.write("m.generate(1)\nm.sweep(['a'], layers=[0], coefficients='b')\n")
    assert len(problems()["reportArgumentType"]) >= 2  # what is wrong is told: types were read, not guessed


def test_a_client_makes_and_runs_an_edit(call: Ask) -> None:
    code = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from subvene import IntervenedModel
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                                     num_attention_heads=2, num_key_value_heads=1))
spec = {"subvene": 1, "model": {"name": "tiny"}, "interventions": [
    {"kind": "scaling", "name": "off", "site": "attention_heads", "layer": 1, "heads": [0], "gain": 0.0,
     "positions": "all"}]}
m = IntervenedModel.from_spec(spec, model=model)
m(torch.tensor([[1, 2, 3]]))
print(m.receipt["off"].edited)
"""
    assert "3" in call("python", "-c", code)


def test_the_source_archive_has_what_a_reader_and_a_packager_need(consumer: Callable[[str], Path]) -> None:
    consumer("wheel")
    (archive,) = (ROOT / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    tracked = subprocess.run(
        [
            "git",
            "ls-files",
            "docs",
            "notebooks",
            "examples",
            "tests",
            "benchmarks",
            "*.md",
            "LICENSE",
            "Makefile",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(tracked.stdout.split()) - names == set()
