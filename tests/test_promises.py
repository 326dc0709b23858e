"""Every test that docs/promises.md names exists."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`")
PAGE = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")


def test_every_test_that_is_named_exists() -> None:
    named = NAMED.findall(PAGE)
    assert len(named) > 50
    missing = []
    for file, test in named:
        path = ROOT / file
        if not path.is_file():
            missing.append(file)
            continue
        tests = set(_tests(path))
        if test and test not in tests:
            missing.append(f"{file}::{test}")
    assert missing == []


def test_every_promise_has_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "held by" not in line]
    assert all("`tests/" in row for row in rows)


def test_every_promise_has_a_test_that_is_not_long() -> None:
    """What `make test` leaves out is held by something that it runs."""
    assert all(_tests(ROOT / "tests/runner/experiments/persona/test_real.py").values())
    for row in PAGE.splitlines():
        if not (named := NAMED.findall(row)):
            continue
        kept = [
            name
            for file, test in named
            for name, is_long in _tests(ROOT / file).items()
            if not is_long and test in ("", name)
        ]
        assert kept, row


@functools.cache
def _tests(path: Path) -> dict[str, bool]:
    """By name, the tests of a file, and whether each is marked as long, in every case of its parameters."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    marks = [ast.unparse(node.value) for node in tree.body if _sets_marks(node)]
    return {
        node.name: any("pytest.mark.long" in mark for mark in marks)
        or any(ast.unparse(one) == "pytest.mark.long" for one in node.decorator_list)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def _sets_marks(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
