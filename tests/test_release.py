"""A tag is released only where everything that names a version or an address says the same."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from checkout import ROOT
from release import disagreements

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SOURCE = PROJECT["urls"]["Source"]
TAG = f"v{PROJECT['version']}"


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """The files that name a version, as they are on the day of a release."""
    for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(changelog.read_text("utf-8").replace("- unreleased", "- 2027-01-31", 1), "utf-8")
    return tmp_path


def test_what_agrees_is_released(released: Path) -> None:
    assert disagreements(TAG, SOURCE, released) == []


@pytest.mark.parametrize(
    ("file", "text", "other", "expected"),
    [
        ("CHANGELOG.md", "- 2027-01-31", "- unreleased", "CHANGELOG.md: expected a heading"),
        (
            "CITATION.cff",
            f"version: {PROJECT['version']}",
            "version: 9.9.9",
            "CITATION.cff: expected version",
        ),
        ("pyproject.toml", f'version = "{PROJECT["version"]}"', 'version = "9.9.9"', "expected v9.9.9"),
    ],
)
def test_what_disagrees_is_named(released: Path, file: str, text: str, other: str, expected: str) -> None:
    path = released / file
    path.write_text(path.read_text("utf-8").replace(text, other, 1), "utf-8")
    assert any(expected in problem for problem in disagreements(TAG, SOURCE, released))


def test_another_address_is_named() -> None:
    (problem,) = [p for p in disagreements(TAG, "https://example.org/fork", ROOT) if "urls" in p]
    assert "https://example.org/fork" in problem


def test_the_tree_says_one_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == PROJECT["version"]


@pytest.mark.parametrize("name", ["check", "release"])
def test_workflows_name_commands_of_the_makefile(name: str) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text("utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    targets = {run.split()[1] for step in steps if (run := step.get("run", "")).startswith("make ")}
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert targets
    assert all(f"\n{target}:" in makefile for target in targets), targets
