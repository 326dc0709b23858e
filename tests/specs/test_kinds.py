"""Kinds are imported when a file has one of them, and are what their registries say."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import EXAMPLES

from subvene.specs import evaluations, recipes
from subvene.specs._base import SpecModel
from subvene.specs._flaws import literal_options
from subvene.specs.interventions import REGISTRY
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


BUILT = """\
import json, sys
from subvene.specs import load_spec
from subvene.specs._base import SpecModel

def below(cls):
    return {cls}.union(*map(below, cls.__subclasses__()))

load_spec(sys.argv[1])
built = [one.__name__ for one in below(SpecModel) if one.__pydantic_complete__]
print(json.dumps([sorted(sys.modules), built]))
"""
MADE_OF_IT = {"iti": {"localized_edit"}, "causal_tracing": {"patching"}, "random_direction": {"budget"}}
"""What takes classes of another kind, or adds an arm of it."""
SPECS = sorted(path for path in EXAMPLES.rglob("*.yaml") if path.parent.name != "data")


@pytest.mark.parametrize("example", SPECS, ids=lambda path: path.name)
def test_an_example_imports_and_builds_what_it_names(example: Path) -> None:
    """To build validators takes the most time of `validate`: none is built of what a file has not."""
    done = subprocess.run(
        [sys.executable, "-c", BUILT, str(example)], capture_output=True, text=True, check=True
    )
    modules, built = json.loads(done.stdout)
    words = set(example.read_text().replace(":", " ").replace("{", " ").replace(",", " ").split())
    for package in (evaluations, recipes):
        for name, place in package._KINDS.items():
            module, _, cls = place.partition(":")
            assert name in words or cls not in built
            named = {other for other, at in package._KINDS.items() if at.startswith(f"{module}:")}
            if f"{package.__name__}.{module}" in modules:
                assert (named | MADE_OF_IT.get(name, set())) & words
    for name, cls in REGISTRY.items():
        assert name in words or cls.__name__ not in built
    # Those of fields and of lists are built within their owners' validators, and have none of their own.
    assert len(built) <= 30
