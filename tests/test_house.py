"""The house stands as docs/house.md says: rooms with floors, imports that point down, nothing long."""

from __future__ import annotations

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from checkout import ROOT

RUNNER = ROOT / "runner"
LONGEST_FILE, LONGEST_TEST_FILE, LONGEST_FUNCTION = 400, 600, 80
"""In lines. When a file comes near, ask what two things it is; when a function does, what its steps are."""
FLOORS = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "house.md").read_text("utf-8"), re.MULTILINE)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("subvene", *(parts[:-1] if parts[-1] == "__init__" else parts)))


FILES = {
    module_name(path): path
    for folder in ("specs", "interventions", "runner")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def imported(name: str) -> set[str]:
    """The files that a file imports, anywhere in it: inside functions and for type checking too."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if one in FILES else str(node.module) for one in whole}
    return found & FILES.keys() - {name}


IMPORTS = {name: imported(name) for name in FILES}


def room(name: str) -> str:
    return name.split(".")[2]


def inside(name: str) -> bool:
    return name.startswith("subvene.runner.")


def test_every_room_has_a_floor_and_nothing_lies_loose() -> None:
    folders = {path.name for path in RUNNER.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(FLOORS)
    assert {path.name for path in RUNNER.iterdir() if path.is_file()} == {"__init__.py", "py.typed"}


@pytest.mark.parametrize("name", [name for name in FILES if inside(name)])
def test_imports_point_down(name: str) -> None:
    above = FLOORS[: FLOORS.index(room(name))]
    wrong = {other for other in IMPORTS[name] if inside(other) and room(other) in above}
    # The face imports from every room, so a room that imports the face looks up.
    faces = {"subvene.runner"} if room(name) != "face" else set()
    assert not wrong | (IMPORTS[name] & faces)


def test_no_file_imports_itself_in_a_circle() -> None:
    # The face knows all rooms, but imports them when it is asked only.
    graph = {name: others for name, others in IMPORTS.items() if name != "subvene.runner"}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        sys.tracebacklimit = 0
        pytest.fail(" → ".join(error.args[1]))


def test_no_file_is_long() -> None:
    limits = {path: LONGEST_FILE for path in FILES.values()}
    limits |= {path: LONGEST_TEST_FILE for path in (ROOT / "tests").rglob("*.py")}
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in limits}
    long = {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > limits[path]}
    assert not long, "what two things is it?"


def test_no_function_is_long() -> None:
    lengths = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in FILES.values()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(lengths) > 1000
    assert not {name: n for name, n in lengths.items() if n > LONGEST_FUNCTION}, "what are its steps?"


def test_few_mappings_in_the_runner_say_nothing_of_what_is_in_them() -> None:
    """A dataclass, a TypedDict or a pydantic model says it; `dict[str, Any]` is for what is others'."""
    untyped = re.compile(r"\b(?:\w*[Dd]ict|\w*Mapping)\[\s*str,\s*(?:typing\.)?Any\s*\]")
    uses = {name: len(untyped.findall(FILES[name].read_text("utf-8"))) for name in FILES if inside(name)}
    assert sum(uses.values()) < 100, dict(sorted(uses.items(), key=lambda use: -use[1])[:10])
