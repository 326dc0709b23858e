"""Documents as files: Markdown to read, and LaTeX of the same tables."""

from __future__ import annotations

from subvene.runner.files.markdown import in_cell
from subvene.runner.reports.blocks import Document, Items, Table
from subvene.runner.reports.latex import tabulars


def document_files(name: str, document: Document, kind: str) -> dict[str, str]:
    """A document by file name: `NAME.md`, and `NAME.tex` if it has a table; nothing of an empty one.

    Args:
        name: without an ending.
        document: of the run.
        kind: of the run.
    """
    files = {f"{name}.md": in_markdown(document)} if document else {}
    tables = [block for block in document if isinstance(block, Table)]
    return files | ({f"{name}.tex": tabulars(tables, f"{name} of a {kind} run")} if tables else {})


def in_markdown(document: Document) -> str:
    """The document as Markdown; empty without a block."""
    parts = [_items(block) if isinstance(block, Items) else _table(block) for block in document]
    return "\n\n".join(part for part in parts if part) + ("\n" if parts else "")


def _items(items: Items) -> str:
    return "\n".join(f"- {in_cell(line)}" for line in items.lines)


def _table(table: Table) -> str:
    lines = [[column.head for column in table.columns], ["---"] * len(table.columns)]
    lines += [[in_cell(cell) for cell in row] for row in table.texts()]
    title = f"**{in_cell(table.title)}**\n\n" if table.title else ""
    return title + "\n".join(f"| {' | '.join(line)} |" for line in lines)
