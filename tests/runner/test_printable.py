"""No control character of a name, a path or an answer reaches the terminal."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import rich.table
from typer.testing import CliRunner

from subvene.runner.cli._console import results
from subvene.runner.cli.app import app
from subvene.runner.console import Console
from subvene.runner.printable import on_screen

EVIL = "a\x1b[31mred\x1b]0;title\x07\x9b2Jb\x7f"
CONTROLS = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0))} - {"\n", "\t"}


def test_controls_are_shown() -> None:
    assert on_screen("".join(sorted(CONTROLS))) == "\ufffd" * len(CONTROLS)
    assert on_screen("é\n\tü – 日本") == "é\n\tü – 日本"


@pytest.mark.parametrize("wrapped", [str, lambda text: _table(text)], ids=["text", "table"])
def test_a_console_obeys_no_control(wrapped: object) -> None:
    """In colour: its own escape sequences are there, and those of what is printed are not."""
    shown = Console()
    shown.file, shown.width = io.StringIO(), 200
    shown._color_system = rich.console.ColorSystem.STANDARD
    shown.print(wrapped(EVIL), style="red", soft_wrap=True)  # type: ignore[operator]
    text = shown.file.getvalue()
    assert "�[31mred" in text
    assert not {"\x07", "\x9b", "\x7f"} & set(text)
    assert "\x1b" not in re.sub(r"\x1b\[[\d;]*m", "", text)


def _table(text: str) -> rich.table.Table:
    table = rich.table.Table(text, box=None)
    table.add_row(text)
    return table


def test_names_of_files_and_their_content(tmp_path: Path) -> None:
    file = tmp_path / "a\x1b[31mred\x1b]0;title\x07.yaml"
    file.write_text("subvene: 1\nmodel: {name: a/b}\nx: 1\ninterventions: []\n", encoding="utf-8")
    for arguments in (["validate", str(file)], ["show", str(file)], ["generate", str(file), "-p", "x"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code != 0
        assert not CONTROLS & set(result.output), arguments


def test_json_escapes_them(capsys: pytest.CaptureFixture[str]) -> None:
    with results(True) as emit:
        emit({EVIL: EVIL})
    text = capsys.readouterr().out
    assert not CONTROLS & set(text)
    assert json.loads(text) == {EVIL: EVIL}
