"""What a spec names on this machine, and which fields do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest

from subvene.specs import parse_spec
from subvene.specs._base import SpecModel
from subvene.specs.local import NAMED, absent

HEAD = "subvene: 1\nmodel: {name: user/model}\n"
STEER = "interventions: [{kind: steering, layer: 1, vector: {file: t.safetensors, key: v}, coefficient: 1}]\n"

# Files that are read with the spec, and what need not be there.
OTHERS = {
    ("PairsFile", "file"),
    ("PromptsFile", "file"),
    ("FactsFile", "file"),
    ("ExperimentSpec", "output"),
    ("ExperimentFields", "output"),
    ("SaeRelease", "id"),  # a folder of a repository on the Hub
    ("RowSource", "file"),  # nothing but what is made of it is in a spec
}


def classes(of: type[SpecModel] = SpecModel) -> Iterator[type[SpecModel]]:
    for one in of.__subclasses__():
        if one.__module__.startswith("subvene.specs"):
            yield one
            yield from classes(one)


def is_text(annotation: Any) -> bool:
    """Whether a field is text, or text or nothing."""
    if get_origin(annotation) is Annotated:
        return is_text(get_args(annotation)[0])
    parts = [part for part in get_args(annotation) if part is not type(None)]
    return annotation is str or (
        len(parts) == 1 and get_origin(annotation) is not tuple and is_text(parts[0])
    )


def test_every_field_that_names_something_here_is_known() -> None:
    known = {(owner.__name__, field) for owner, field in NAMED} | OTHERS
    path = re.compile(r"\bfile\b|folder", re.IGNORECASE)
    naming = {
        (one.__name__, name)
        for one in classes()
        for name, field in one.model_fields.items()
        if name not in ("name", "key")
        and is_text(field.annotation)
        and (name in ("file", "folder", "path", "encoder") or path.search(field.description or ""))
    }
    assert ("TensorRef", "file") in naming
    assert naming - known == set()


def names(text: str, folder: Path) -> dict[str, str]:
    spec = parse_spec(text)
    return {".".join(map(str, loc)): expected for loc, expected, _ in absent(spec, folder)}


def test_files_beside_the_spec(tmp_path: Path) -> None:
    found = names(HEAD + STEER, tmp_path)
    assert found == {
        "interventions.0.vector.file": f"a file that is there (looked for at {tmp_path / 't.safetensors'})"
    }
    (tmp_path / "t.safetensors").mkdir()
    assert names(HEAD + STEER, tmp_path) == found
    (tmp_path / "t.safetensors").rmdir()
    (tmp_path / "t.safetensors").touch()
    assert names(HEAD + STEER, tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("user/model", True),
        ("gpt2", True),
        ("./model", False),
        ("../model", False),
        ("~/model", False),
        ("/no/such", False),
        ("models/llama/8b", False),
        ("-odd", False),
        ("here", True),
        ("./here", True),
        ("empty", False),
        ("./empty", False),
        ("package:no_such_models/a.gguf", False),
        ("package:json/a.gguf", False),
    ],
)
def test_models(name: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert bool(names(HEAD.replace("user/model", f'"{name}"') + STEER, tmp_path)) != there


def test_every_place_of_an_experiment(tmp_path: Path) -> None:
    text = """\
fit: {recipe: localized_edit, key: e, data: {truthfulqa: {file: a.csv}}, heads: {rule: all}}
interventions: [{kind: low_rank_edit, name: e, factors: {key: e}, positions: all}]
evaluate:
- {kind: truthfulqa, seeds: [1], data: {file: b.csv}, primer: c.txt, instruction: d.txt,
   judge: {kind: trained, folder: e}}
- {kind: divergence, texts: {file: f.jsonl}}
- kind: truthfulqa
  seeds: [2]
  judge: {kind: reference, metric: embedding, encoder: ./g}
- kind: truthfulqa
  seeds: [3]
  judge: {kind: transformers, model: {name: ./h}}
seeds: [1, 2, 3]
"""
    assert list(names(HEAD + text, tmp_path)) == [
        "fit.data.truthfulqa.file",
        "evaluate.0.data.file",
        "evaluate.0.primer",
        "evaluate.0.instruction",
        "evaluate.0.judge.folder",
        "evaluate.1.texts.file",
        "evaluate.2.judge.encoder",
        "evaluate.3.judge.model.name",
    ]


def test_traits_and_preferences(tmp_path: Path) -> None:
    traits = "fit: {recipe: persona, traits: [formal, {name: kind, file: k.json, evaluation: l.json}]}\n"
    text = (
        HEAD + traits + "interventions: [{kind: steering, layer: 1, vector: {key: kind}, coefficient: 1}]\n"
    )
    assert list(names(text, tmp_path)) == ["fit.traits.1.file", "fit.traits.1.evaluation"]
    edit = "fit: {recipe: localized_edit, key: e, data: {file: ~/p.jsonl}, heads: {rule: all}}\n"
    edit += "interventions: [{kind: low_rank_edit, factors: {key: e}, positions: all}]\n"
    assert list(names(HEAD + edit, tmp_path)) == ["fit.data.file"]
