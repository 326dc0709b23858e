"""The code blocks of the README and of the pages under docs/."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from checkout import ROOT

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        page: its page's path in the checkout.
        line: of its first line of code, from 1.
        language: what stands behind its fence.
        code: its lines.
    """

    page: str
    line: int
    language: str
    code: str

    @property
    def id(self) -> str:
        """Page and line, for a test's name."""
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """All blocks of these languages, page by page."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = (block for page in pages for block in _of(str(page.relative_to(ROOT)), page.read_text("utf-8")))
    return [block for block in found if block.language in languages]


def commands(block: Block) -> Iterator[str]:
    """The lines of a block that call `subvene`, without prompt, comment and what they are piped to."""
    for line in block.code.replace("\\\n", " ").splitlines():
        if called := re.match(r"(?:\$ |[A-Z_]+=\S+ |.*\| )?(subvene .+)", line):
            yield re.split(r"\s#\s|\s\d?>\s|\s\|\s", called[1])[0].strip()


def _of(page: str, text: str) -> Iterator[Block]:
    for match in _BLOCK.finditer(text):
        yield Block(page, text.count("\n", 0, match.start()) + 2, match[1], match[2])
