"""What code gives to the documentation stands there as code gives it."""

from __future__ import annotations

import runpy

import pytest
from checkout import ROOT

MAKE = runpy.run_path(str(ROOT / "docs" / "make.py"))
RENEWED: dict[str, str] = MAKE["renewed"]()


@pytest.mark.parametrize("path", RENEWED)
def test_the_docs_are_what_make_docs_writes(path: str) -> None:
    assert (ROOT / path).read_text("utf-8") == RENEWED[path], "run: make docs"


def test_every_kind_has_a_row() -> None:
    page = RENEWED["docs/spec.md"]
    assert all(f"| `{kind}` | " in page for kind in MAKE["REGISTRY"])
    assert all(f"`{kind}`" in RENEWED["docs/exports.md"] for kind in MAKE["REGISTRY"])
