"""Pieces of Markdown that say what their text says, whatever it holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def in_cell(text: str) -> str:
    """Text that ends neither a cell nor a line of a Markdown table, and is no markup there."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are plain text."""
    lines = [head, ["---"] * len(head), *rows]
    cells = ([" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
