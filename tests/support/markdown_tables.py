"""The pipe tables of a Markdown file, read back."""

from __future__ import annotations

import re

from subvene.runner.reports.blocks import Table

_RULE = re.compile(r"\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*")


def tables_in(markdown: str) -> list[Table]:
    """The pipe tables of a Markdown text, in its order."""
    found = []
    lines = markdown.splitlines()
    for i in range(1, len(lines)):
        if "|" not in lines[i] or not _RULE.fullmatch(lines[i]) or "|" not in lines[i - 1]:
            continue
        heads = _cells(lines[i - 1])
        rows = []
        for line in lines[i + 1 :]:
            if not line.startswith("|"):
                break
            cells = _cells(line)
            rows.append((*cells, *[""] * (len(heads) - len(cells)))[: len(heads)])
        found.append(Table.of(heads, rows))
    return found


def _cells(line: str) -> tuple[str, ...]:
    inner = line.strip().removeprefix("|").removesuffix("|")
    return tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", inner))
