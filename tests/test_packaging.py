"""How the three folders install as subvene.*, and which way their imports may point."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("specs", "interventions", "runner")
FACE = "face"
"""The folder of runner/ that installs as `subvene` itself."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Where a distribution's name is not the name it is imported by.
IMPORTED_AS = {"pyyaml": "yaml", "scikit_learn": "sklearn"}

# Imports point one way, runner -> interventions -> specs, and specs stays quick to import.
FORBIDDEN = {
    "specs": ("subvene.interventions", "subvene.runner", "torch", "transformers", "pyvene"),
    "interventions": ("subvene.runner",),
    "runner": (),
}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported_names(path: Path) -> set[str]:
    """The modules that a file imports anywhere in it, except for type checking only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))
    return names


def test_packages_in_pyproject_are_the_folders_in_the_checkout() -> None:
    found = {
        ".".join(("subvene", *path.parent.relative_to(ROOT).parts))
        for folder in FOLDERS
        for path in sources(folder)
        if path.parent.name != FACE
    } | {"subvene", "subvene.examples"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_wheel_holds_every_module_and_no_other_top_level_name(tmp_path: Path) -> None:
    for folder in (*FOLDERS, "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", tmp_path / "dist", tmp_path], check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())

    assert {name.split("/")[0] for name in names} == {
        "subvene",
        f"subvene-{PROJECT['project']['version']}.dist-info",
    }
    paths = {str(path.relative_to(ROOT)) for folder in FOLDERS for path in sources(folder)}
    expected = {f"subvene/{path.replace(f'runner/{FACE}/', '')}" for path in paths}
    expected |= {f"subvene/{folder}/py.typed" for folder in FOLDERS}
    for pages in ("reports", "engines/playground"):
        expected |= {f"subvene/runner/{pages}/page.{kind}" for kind in ("html", "css", "js")}
    expected |= {f"subvene/runner/reports/plotly-cartesian.{kind}" for kind in ("min.js.gz", "LICENSE")}
    expected |= {f"subvene/runner/judges/data/{name}" for name in ("judge.json", "classifier.safetensors")}
    expected |= {f"subvene/runner/data/{name}" for name in ("neutral.txt", "truthfulqa/primer.txt")}
    expected.add("subvene/runner/measures/multiple_choice.json")
    expected.add("subvene/py.typed")
    examples = ROOT / "examples"
    shipped = [*examples.glob("*.yaml"), *(examples / "data").iterdir()]
    expected |= {f"subvene/{path.relative_to(ROOT)}" for path in shipped}
    assert expected <= names


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_point_one_way(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(folder)
        for name in sorted(imported_names(path))
        if any(name == module or name.startswith(f"{module}.") for module in FORBIDDEN[folder])
    ]
    assert wrong == []


def test_every_library_imported_is_a_declared_dependency() -> None:
    requirements = list(PROJECT["project"]["dependencies"])
    for extra, lines in PROJECT["project"]["optional-dependencies"].items():
        if extra != "dev":
            requirements += lines
    declared = {re.split(r"[^A-Za-z0-9_.-]", line)[0].lower().replace("-", "_") for line in requirements}
    declared = {IMPORTED_AS.get(name, name) for name in declared}
    known = declared | set(sys.stdlib_module_names) | {"subvene"}
    undeclared = [
        f"{path.relative_to(ROOT)} imports {name}"
        for folder in FOLDERS
        for path in sources(folder)
        for name in sorted(imported_names(path))
        if name.split(".")[0] not in known
    ]
    assert undeclared == []
