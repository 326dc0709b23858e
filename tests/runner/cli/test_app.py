"""What holds for every command: what it imports, how it fails, what it leaves behind."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from forked import Forked

from subvene.runner.cli import app
from subvene.runner.cli.app import main

Run = Callable[..., Any]
COMMANDS = (
    "validate",
    "schema",
    "fit",
    "generate",
    "chat",
    "show",
    "run",
    "project",
    "screen",
    "push",
    "pull",
)


@pytest.mark.parametrize(
    ("args", "nor"),
    [
        (["--help"], ("pydantic", "yaml", "subvene.specs")),
        (["--version"], ("pydantic", "yaml", "subvene.specs", "rich")),
        (["schema"], ("rich",)),
        (["validate", "examples/quickstart.yaml"], ("rich", "subvene.specs.schema")),
    ],
)
def test_quick_commands_import_no_framework(args: list[str], nor: tuple[str, ...]) -> None:
    """Nor what they have no use for: what a command imports is most of the time that it takes."""
    code = (
        "import sys, subvene.runner.cli.app as cli\n"
        f"sys.argv = ['subvene', *{args!r}]\n"
        "try:\n    cli.main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'transformers', 'pyvene', 'numpy', 'safetensors', 'huggingface_hub', 'plotext'}\n"
        f"print(*sorted((heavy | set({nor!r})) & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout
    assert done.stderr.split() == []


def test_the_installed_command_is_this_one() -> None:
    command = Path(sys.executable).with_name("subvene")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("subvene 0.")


@pytest.mark.parametrize("args", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_every_help_names_the_exit_codes(subvene: Run, args: list[str]) -> None:
    result = subvene(*args)
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    for code in ("0 done", "1 the file", "2 wrong usage", "3 the run was not steered", "130 interrupted"):
        assert code in text


@pytest.mark.parametrize(
    "args",
    [
        ["validate"],
        ["generate", "x.yaml", "--no-such-option"],
        ["fit", "x.yaml"],
        ["no-such-command"],
    ],
)
def test_wrong_usage_is_2(subvene: Run, args: list[str]) -> None:
    result = subvene(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr


@pytest.mark.parametrize("args", [["show"], ["generate", "-p", "hello"], ["fit", "-o", "out"], ["run"]])
def test_an_error_is_one_clean_message(subvene: Run, tmp_path: Path, args: list[str]) -> None:
    spec = tmp_path / "bad.yaml"
    spec.write_text("subvene: 1\nmodel: {name: a/b}\ninterventions:\n- {kind: steering, layr: 3}\n")
    result = subvene(args[0], spec, *args[1:])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {spec}:4:3: interventions[0].vector: expected")
    assert f"\n{spec}:4:20: interventions[0].layr: expected" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_error_with_json_prints_no_document(subvene: Run, tmp_path: Path) -> None:
    result = subvene("show", tmp_path / "nothing.yaml", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no such file" in result.stderr


def test_a_run_that_was_not_steered_is_3(subvene: Run, write: Run) -> None:
    lines = (
        "- {kind: steering, layer: 1, vector: {file: t.safetensors, key: v}, coefficient: 3, positions: RULE}"
    )
    spec = write("interventions:\n" + lines.replace("RULE", "{indices: [900]}"))
    result = subvene("generate", spec, "-p", "hello", "--json", "--max-new-tokens", 2)
    assert result.exit_code == 3
    assert "edited no token" in result.stderr
    assert result.stdout == ""


def stalled(module: str, function: str, arguments: list[str]) -> None:
    """The command, stopped in the middle of a write: files are there, and the rest is still to come."""

    def stall(*_: Any, **__: Any) -> None:
        print("WRITING", file=sys.stderr, flush=True)
        time.sleep(120)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    setattr(importlib.import_module(f"subvene.runner.{module}"), function, stall)
    sys.argv = ["subvene", *arguments]
    main()


@pytest.mark.parametrize(
    ("command", "module", "function", "kept"),
    [
        ("fit", "artifacts.artifact", "model_card", set()),
        ("run", "experiments.results", "write_text", {"manifest.json", "experiment.yaml", "units.jsonl"}),
    ],
)
def test_ctrl_c_leaves_nothing_half_written(
    experiment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    module: str,
    function: str,
    kept: set[str],
) -> None:
    """A run keeps what it has done, to be taken up again; nothing else stays."""
    place, scratch = tmp_path / "place", tmp_path / "scratch"
    place.mkdir()
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("TMPDIR", str(scratch))
    process = Forked(lambda: stalled(module, function, [command, str(experiment), "-o", str(place / "out")]))
    try:
        seen = ""
        while "WRITING" not in seen:
            line = process.output.readline()
            assert line, seen
            seen += line
        half_written = list(place.iterdir())
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate()
    finally:
        process.kill()
    assert half_written, "the test interrupts too early to show anything"
    left = {path.name for path in place.glob("out/*")}
    assert kept <= left
    assert "results.json" not in left
    assert bool(left) == bool(kept)
    assert [path for path in place.rglob("*") if path.name.startswith(".") and path.name != ".lock"] == []
    assert list(scratch.iterdir()) == []
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert "interrupted" in rest


def test_json_is_one_document_whatever_libraries_print(
    subvene: Run, steer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from subvene.runner.intervened import loaded as home

    load = home.load_model

    def chatty(*args: Any, **kwargs: Any) -> Any:
        print("a library's notice")
        return load(*args, **kwargs)

    monkeypatch.setattr(home, "load_model", chatty)
    result = subvene("generate", steer, "-p", "hello", "--json", "--max-new-tokens", 2)
    assert json.loads(result.stdout)["records"][0]["prompt"] == "hello"
    assert "a library's notice" in result.stderr


@pytest.mark.parametrize("name", app.COMMANDS)
def test_the_list_of_commands_says_what_each_says_of_itself(subvene: Run, name: str) -> None:
    shown = " ".join(subvene(name, "--help").stdout.split())
    assert app.COMMANDS[name][1] in shown
