"""Kinds are imported when a file has one of them, and are what their registries say."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from subvene.specs import evaluations, recipes
from subvene.specs._base import SpecModel
from subvene.specs._flaws import literal_options
from subvene.specs.kinds import STANDS_FOR

TEXT = """\
subvene: 1
model: {name: a/b}
interventions: [{kind: steering, layer: 1, vector: {key: v}, coefficient: 1}]
fit: {recipe: mean_difference, key: v, pairs: {texts: [{positive: a, negative: b}]}}
evaluate: [{kind: samples, prompts: [hi], coefficients: [1]}]
"""


@pytest.mark.parametrize(
    ("registry", "field"),
    [(evaluations.REGISTRY, "kind"), (recipes.REGISTRY, "recipe")],
    ids=["evaluations", "recipes"],
)
def test_a_registry_names_classes_as_they_name_themselves(registry: evaluations.Kinds, field: str) -> None:
    assert len(registry) > 3
    for name, cls in registry.items():
        assert literal_options(cls.model_fields[field].annotation) == (name,)
        assert issubclass(cls, SpecModel)


def test_what_stands_for_a_class_knows_its_instances_and_those_of_classes_made_of_it() -> None:
    kinds = importlib.import_module("subvene.specs.kinds")
    for name, home in STANDS_FOR.items():
        real, stand_in = getattr(importlib.import_module(home), name), getattr(kinds, name)
        assert isinstance(real.model_construct(), stand_in)
        assert isinstance(type("Made", (real,), {}).model_construct(), stand_in)
        others = [other for other in STANDS_FOR if other != name]
        assert not any(isinstance(real.model_construct(), getattr(kinds, other)) for other in others)
        assert not isinstance(name, stand_in)


def test_a_file_imports_the_kinds_that_it_has() -> None:
    code = (
        "import sys\nfrom subvene.specs import parse_spec\n"
        f"parse_spec({TEXT!r})\n"
        "print(*(m.removeprefix('subvene.specs.') for m in sys.modules if m.startswith('subvene.specs.')))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(found.stdout.split())
    assert {"evaluations.samples", "recipes.mean_difference"} <= modules
    others = {
        "evaluations.traits",
        "evaluations.localization",
        "evaluations.truthfulqa",
        "evaluations.contrast",
    }
    others |= {"recipes.iti", "recipes.persona", "recipes.localized_edit", "judges", "traits", "dumping"}
    assert not others & modules
