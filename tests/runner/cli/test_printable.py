"""What others named or wrote is shown on the screen, and never obeyed: no escape codes, no markup."""

from __future__ import annotations

import ast
import io
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import typer
from checkout import ROOT
from rich.progress import Progress
from rich.table import Table

from subvene.runner.cli._console import results, say
from subvene.runner.cli.app import app
from subvene.runner.files.console import Console
from subvene.runner.files.printable import in_json, on_line, on_screen, printable_logs

Run = Callable[..., Any]
#: A title, the clipboard, a colour, the cursor, an 8-bit control, a text that runs backwards.
EVIL = "a\x1b]0;title\x07\x1b]52;c;ZXZpbA==\x07\x1b[31m\x1b[2J\r\x9b31m\u202eb"
MARKUP = "[red]x[/red][/]:smile:"
NAME = EVIL.replace("/", "") + "[bold]"


def is_clean(text: str) -> bool:
    return on_screen(text) == text


def test_what_a_terminal_would_act_on_is_replaced() -> None:
    assert on_screen(EVIL) == "a�]0;title��]52;c;ZXZpbA==��[31m�[2J��31m�b"
    plain = "tab\tline\n– ü 漢字 👩\u200d💻 می\u200cخواهم [red]"
    assert on_screen(plain) == plain
    assert on_screen("\udcff\x00\x7f") == "���"
    assert on_line("one\ntwo: ok") == "one�two: ok"


def test_json_says_the_same() -> None:
    document = {EVIL: ["\udcff", MARKUP, "\x7f"]}
    text = in_json(json.dumps(document, ensure_ascii=False))
    assert is_clean(text)
    assert json.loads(text) == document


def test_json_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with results(True) as emit:
        emit({"path": EVIL})
    said = capsys.readouterr().out
    assert is_clean(said)
    assert json.loads(said) == {"path": EVIL}


@pytest.mark.parametrize("terminal", [True, False])
def test_the_console_keeps_its_own_colours_and_nobody_elses(terminal: bool) -> None:
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=terminal, color_system="standard" if terminal else None, width=200
    )
    table = Table(EVIL, MARKUP)
    table.add_row(EVIL, MARKUP)
    for renderable in (EVIL, MARKUP, table):
        console.print(renderable, style="red")
    shown = file.getvalue()
    assert ("\x1b[31m" in shown) == terminal
    assert shown.count(MARKUP) == 3
    assert shown.count("�[2J") == 3
    for code in ("\x1b]", "\x1b[2J", "\x07", "\x9b", "\r", "\u202e"):
        assert code not in shown


def test_bars_and_spinners(monkeypatch: pytest.MonkeyPatch) -> None:
    from subvene.runner.files import progress

    file = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=file, force_terminal=True, width=200))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    description = f"{MARKUP} \x1b]0;t\x07"
    with progress.status(description):
        pass
    list(progress.track([1, 2], description))
    with progress.generating(2, description) as streamer:
        streamer.put(torch.zeros(1))
    shown = file.getvalue()
    assert shown.count(MARKUP) >= 3
    assert "\x1b]" not in shown
    assert "\x07" not in shown
    assert isinstance(Progress(), Progress)


class _Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_an_answer_is_shown_on_a_terminal_and_kept_in_a_file(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = _Stream(terminal)
    monkeypatch.setattr("sys.stdout", stream)
    say(EVIL)
    assert stream.getvalue() == (on_screen(EVIL) if terminal else EVIL) + "\n"


def test_a_streamed_answer_is_shown_too(
    steer: Path, monkeypatch: pytest.MonkeyPatch, loaded: tuple[Any, Any]
) -> None:
    from subvene.runner.cli.generate import _stream

    class Model:
        tokenizer = loaded[1]

    def write(_prompts: Any, streamer: Any) -> list[str]:
        streamer.on_finalized_text("one " + EVIL)
        streamer.on_finalized_text(" two", stream_end=True)
        return []

    stream = _Stream(True)
    monkeypatch.setattr("sys.stdout", stream)
    _stream(Model(), write, ["hello"], {})  # type: ignore[arg-type]
    assert stream.getvalue() == f"one {on_screen(EVIL)} two\n"


def test_logs_of_libraries(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("transformers.some")
    with printable_logs():
        log.warning("\x1b[1mloaded\x1b[0m %s", EVIL)
    log.warning("%s", EVIL)
    said = [record.msg for record in caplog.records]
    assert said[0] == f"loaded {on_screen(EVIL.replace(chr(27) + '[31m', ''))}"
    assert caplog.records[1].getMessage() == EVIL


# --- commands


@pytest.fixture
def evil(write: Run, tmp_path: Path) -> Path:
    """A spec and its tensors in a folder of an evil name."""
    folder = tmp_path / NAME
    folder.mkdir()
    spec = write(STEER)
    for file in (spec, tmp_path / "t.safetensors"):
        shutil.copy(file, folder / file.name)
    named = folder / f"spec{NAME}\nx.yaml: ok.yaml"
    shutil.copy(spec, named)
    return named


STEER = """\
interventions:
- {kind: steering, name: glad, layer: 1, vector: {file: t.safetensors, key: v}, coefficient: 3}
"""
COMMANDS: dict[str, tuple[int, Callable[[Path, Path], list[Any]]]] = {
    "validate": (0, lambda spec, _: ["validate", spec]),
    "validate, no such file": (1, lambda spec, _: ["validate", spec.with_name(NAME + ".yaml")]),
    "validate, another suffix": (1, lambda spec, _: ["validate", spec.with_name(NAME)]),
    "show": (0, lambda spec, _: ["show", spec]),
    "show, JSON": (0, lambda spec, _: ["show", spec, "--json"]),
    "show, no such file": (1, lambda spec, _: ["show", spec.with_name(NAME)]),
    "generate": (0, lambda spec, _: ["generate", spec, "-p", "hello", "--max-new-tokens", 2, "--compare"]),
    "generate, no such prompts": (1, lambda spec, _: ["generate", spec, "--prompts-file", NAME]),
    "generate, no such intervention": (
        2,
        lambda spec, _: ["generate", spec, "-p", "a", "--strength", NAME + "=1"],
    ),
    "wrong option": (2, lambda spec, _: ["generate", spec, "--" + NAME]),
    "wrong command": (2, lambda _, __: [NAME]),
    "wrong choice": (2, lambda spec, _: ["export", spec, "--to", NAME, "-o", "x"]),
    "export": (0, lambda spec, work: ["export", spec, "--to", "vector", "-o", work / NAME / "out"]),
    "import, no such file": (
        1,
        lambda spec, work: ["import", spec.with_name(NAME), "--model", "a/b", "-o", work / "o"],
    ),
    "push, no such folder": (1, lambda spec, _: ["push", spec.with_name(NAME), "a/b"]),
    "project, no such file": (1, lambda spec, _: ["project", spec, spec.with_name(NAME + ".jsonl")]),
    "judge check, no such file": (
        1,
        lambda spec, _: ["judge", "check", "--judge", "reference", "--labels", spec.with_name(NAME)],
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_sends_what_a_name_holds(subvene: Run, evil: Path, tmp_path: Path, command: str) -> None:
    code, args = COMMANDS[command]
    result = subvene(*args(evil, tmp_path))
    assert result.exit_code == code, result.output
    assert is_clean(result.stdout), repr(result.stdout)
    assert is_clean(result.stderr), repr(result.stderr)


def test_a_line_end_in_a_name_begins_no_line(subvene: Run, evil: Path) -> None:
    assert len(subvene("validate", evil).stdout.splitlines()) == 1


def test_names_of_weights_reach_no_terminal(
    subvene: Run, write: Run, model_folder: Path, tmp_path: Path
) -> None:
    """transformers logs a table of the weights that a model does not use."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["head\x1b]0;t\x07.weight"] = torch.ones(3)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    result = subvene("generate", write(STEER), "--model", folder, "-p", "hello", "--max-new-tokens", 2)
    assert result.exit_code == 0, result.stderr
    assert is_clean(result.stdout + result.stderr)


def test_everything_is_printed_by_those_who_look() -> None:
    """rich's own console, `print` and bare streams would send what they are given."""
    found = set()
    for path in ROOT.glob("runner/**/*.py"):
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in (
                    "print",
                    "typer.echo",
                    "typer.secho",
                    "rich.print",
                    "sys.stdout.write",
                    "sys.stderr.write",
                ):
                    found.add((name, ast.unparse(node)))
    allowed = {
        (
            "runner/cli/_console.py",
            "sys.stdout.write((on_screen(text) if sys.stdout.isatty() else text) + end)",
        ),
        ("runner/cli/app.py", "typer.echo(f\"subvene {version('subvene')}\")"),
        ("runner/cli/_terminal.py", "sys.stderr.write(_PROMPT)"),
        ("runner/cli/validate.py", "typer.echo('\\n'.join(lines))"),
        ("runner/cli/validate.py", "typer.echo(text, nl=False)"),
    }
    assert found == allowed
    assert isinstance(app, typer.Typer)
