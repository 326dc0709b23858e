"""`import subvene`: a lazy face that knows its names, its parts and its version."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module

import pytest
from checkout import ROOT

import subvene


def test_importing_the_face_loads_neither_torch_nor_transformers_nor_pydantic() -> None:
    code = (
        "import sys, subvene; dir(subvene); subvene.__version__; "
        "heavy = {'torch', 'transformers', 'pydantic', 'pyvene', 'subvene.runner'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_name_of_the_face_is_the_thing_of_its_part() -> None:
    parts = [import_module(f"subvene.{part}") for part in ("runner", "specs")]
    for name in set(subvene.__all__) - {"__version__"}:
        assert any(getattr(subvene, name) is getattr(part, name, None) for part in parts), name
    assert set(parts[0].__all__) <= set(subvene.__all__)
    assert {"fit", "IntervenedModel", "load_spec", "run_experiment", "specs", "runner"} <= set(dir(subvene))


def test_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert subvene.__version__ == project["version"]


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fits'"):
        subvene.fits  # noqa: B018
