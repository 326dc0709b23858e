"""Tables of many numbers fit the terminal, with nothing cut."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from subvene.runner.reports.console import print_wide

HEADS = ["True", "Info", "True×Info", "True∧Info", "MC1", "MC2", "MC3", "CE", "KL"]
ROWS = [
    ("baseline", [f"0.{i}41\n± 0.013" for i in range(9)]),
    ("iti_best strength=15, fit.select.k=26", [f"1.{i}41\n± 0.013" for i in range(9)]),
    ("a" * 70, ["not finite"] * 9),
    ("[red]no markup[/red]", ["–"] * 9),
]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_nothing_is_cut_at_any_width(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_wide(console, "condition", HEADS, ROWS)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    for head in HEADS:
        assert len(re.findall(rf"(?<!\S){re.escape(head)}(?!\S)", shown)) == 1, head
    for _, cells in ROWS[:2]:
        assert all(cell.split("\n")[0] in shown for cell in cells)
    names = "".join(line.split("│")[0].strip() for line in shown.splitlines())
    for name, _ in ROWS:
        assert name.replace(" ", "") in names.replace(" ", "")
