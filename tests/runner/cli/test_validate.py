from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkout import EXAMPLES

from subvene.runner.cli.validate import schema_text
from subvene.specs import json_schema
from subvene.specs.regular_file import open_regular

Run = Callable[..., Any]
SPECS = sorted(EXAMPLES.glob("*.yaml"))
BAD = "subvene: 2\nmodel: {name: a/b}\ninterventions:\n- {kind: sterring}\n"


def test_every_problem_of_every_file(subvene: Run, tmp_path: Path, steer: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(BAD)
    two.write_text("modle: 1\n")
    result = subvene("validate", one, steer, two)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{one}:1:10: subvene: expected the format version 1")
    assert lines[1].startswith(f"{one}:4:10: interventions[0].kind: expected one of:")
    assert lines[1].endswith("did you mean 'steering'?")
    assert lines[2] == f"{steer}: ok"
    assert all(line.startswith(str(two)) for line in lines[3:])
    assert len(lines) > 4


def test_valid_files_are_0(subvene: Run, steer: Path) -> None:
    assert subvene("validate", steer).exit_code == 0


def test_json(subvene: Run, tmp_path: Path, steer: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(BAD)
    result = subvene("validate", bad, steer, "--json")
    assert result.exit_code == 1
    problems = json.loads(result.stdout)
    assert [(p["file"], p["line"], p["column"], p["path"]) for p in problems] == [
        (str(bad), 1, 10, "subvene"),
        (str(bad), 4, 10, "interventions[0].kind"),
    ]
    assert problems[1]["hint"] == "steering"
    assert subvene("validate", steer, "--json").stdout == "[]\n"


def test_files_of_pairs_are_checked_with_the_spec(subvene: Run, write: Run, tmp_path: Path) -> None:
    spec = write(
        "fit: {recipe: mean_difference, key: v, pairs: {file: pairs.yaml}}\n"
        "interventions: [{kind: steering, layer: 1, vector: {key: v}, coefficient: 1}]\n"
    )
    assert f"{tmp_path / 'pairs.yaml'}: expected a readable file" in subvene("validate", spec).stdout
    (tmp_path / "pairs.yaml").write_text("texts:\n- {positive: a, negatve: b}\n")
    result = subvene("validate", spec)
    assert result.exit_code == 1
    assert f"{tmp_path / 'pairs.yaml'}:2:17: texts[0].negatve" in result.stdout


def test_schema_is_printed_or_written(subvene: Run, tmp_path: Path) -> None:
    result = subvene("schema")
    assert json.loads(result.stdout) == json_schema()
    written = tmp_path / "schema.json"
    assert subvene("schema", "-o", written).stdout == ""
    assert written.read_text(encoding="utf-8") == result.stdout
    assert subvene("schema", "-o", tmp_path / "no" / "schema.json").exit_code == 1


def test_the_examples_schema_is_up_to_date() -> None:
    assert (EXAMPLES / "subvene.schema.json").read_text(encoding="utf-8") == schema_text(), (
        "run: subvene schema -o examples/subvene.schema.json"
    )


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.name)
def test_examples_are_valid_and_name_the_schema(subvene: Run, path: Path) -> None:
    result = subvene("validate", path)
    assert result.stdout == f"{path}: ok\n"
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=subvene.schema.json"


def test_there_are_examples() -> None:
    assert EXAMPLES / "quickstart.yaml" in SPECS


def test_what_a_spec_names_has_to_be_there(subvene: Run, write: Run, tmp_path: Path) -> None:
    spec = write(
        "interventions:\n"
        "- {kind: steering, layer: 1, vector: {file: gone.safetensors, key: v}, coefficient: 1}\n"
    )
    spec.write_text(re.sub(r"name: [^,]*", "name: ./no-model", spec.read_text()))
    result = subvene("validate", spec)
    assert result.exit_code == 1
    model, tensors = result.stdout.splitlines()
    assert model.startswith(f"{spec}:2:15: model.name: expected a folder that is there (looked for at ")
    assert tensors.startswith(f"{spec}:4:45: interventions[0].vector.file: expected a file that is there")
    assert f"(looked for at {tmp_path / 'gone.safetensors'}), found 'gone.safetensors'" in tensors
    paths = [problem["path"] for problem in json.loads(subvene("validate", spec, "--json").stdout)]
    assert paths == ["model.name", "interventions[0].vector.file"]


def test_looking_for_files_imports_no_framework(tmp_path: Path) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text(
        "subvene: 1\nmodel: {name: package:torch/x.gguf}\n"
        "interventions: [{kind: ablation, layer: 1, direction: {file: t.safetensors, key: v}}]\n"
    )
    code = (
        "import sys, subvene.runner.cli.app as cli\n"
        f"sys.argv = ['subvene', 'validate', {str(spec)!r}]\n"
        "try:\n    cli.main()\nexcept SystemExit as stop:\n    assert stop.code == 1\n"
        "print(*sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "a GGUF file of torch (it has none)" in done.stdout
    assert done.stderr.split() == []


def test_a_file_is_read_once(
    subvene: Run, write: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = "{file: no-such.safetensors, key: v}"
    file = write(f"interventions: [{{kind: steering, layer: 1, vector: {vector}, coefficient: 1}}]\n")
    read: list[Path] = []
    monkeypatch.setattr(
        "subvene.specs.document.open_regular", lambda path: read.append(path) or open_regular(path)
    )
    assert f"{file}:" in subvene("validate", file).stdout
    assert read == [file]
