"""`subvene init`: a commented spec with its data, to begin from; it runs as it is written."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from subvene.runner.cli._console import out
from subvene.runner.cli._options import model_overrides
from subvene.runner.cli.validate import schema_text
from subvene.runner.files.storage import atomic_folder
from subvene.specs import SubveneError
from subvene.specs.regular_file import read_bytes, read_text

_EXAMPLES = "subvene.examples"
_SCHEMA = "subvene.schema.json"
_DATA = re.compile(r"data/[\w-]+\.\w+")


class Task(StrEnum):
    """What somebody may want to begin with; a new one is a line here and in `_EXAMPLE_OF`."""

    STEER = "steer"
    ITI = "iti"
    PERSONA = "persona"
    EDIT = "edit"
    TRACING = "tracing"
    DAS = "das"


_EXAMPLE_OF = {
    Task.STEER: "quickstart.yaml",
    Task.ITI: "iti-own-questions.yaml",
    Task.PERSONA: "persona.yaml",
    Task.EDIT: "localized-edit.yaml",
    Task.TRACING: "causal-tracing.yaml",
    Task.DAS: "das-gender.yaml",
}


def init(
    task: Annotated[
        Task,
        typer.Argument(
            help="steer: a vector from contrast pairs; iti: truthful directions in attention heads; persona: "
            "a trait's vector; edit: a trained edit from preferences; tracing: where a fact comes from; das: "
            "where a variable is.",
            show_default=False,
        ),
    ],
    folder: Annotated[Path | None, typer.Argument(help="A new folder; left out: the task's name.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="The model: a Hub id or a folder; left out: the small one that comes with subvene.",
        ),
    ] = None,
) -> None:
    """Write a commented spec for a task, with data beside it: change both to make it yours.

    The folder must be new: nothing is written over.
    """
    model_overrides(model, None, None, None)  # a name that is none is said before anything is written
    target = folder or Path(task.value)
    if target.exists():
        raise SubveneError(f"{target}: exists already; name a new folder: subvene init {task.value} FOLDER")
    examples = Path(str(files(_EXAMPLES)))
    name = _EXAMPLE_OF[task]
    text = read_text(examples / name).replace(f"examples/{name}", f"{task.value}.yaml")
    data = sorted(set(_DATA.findall(text)))
    with atomic_folder(target) as place:
        spec = place / f"{task.value}.yaml"
        spec.write_text(text if model is None else _of_model(text, model), encoding="utf-8")
        (place / _SCHEMA).write_text(schema_text(), encoding="utf-8")
        (place / "data").mkdir()
        for one in data:
            (place / one).write_bytes(read_bytes(examples / one))
    run = "fit" if task is Task.EDIT else "run"
    more = f" -o {target / 'artifact'}" if task is Task.EDIT else ""
    beside = f" and {', '.join(data)}" if data else ""
    out().print(
        f"wrote {target / spec.name}{beside}\nnext: subvene {run} {target / spec.name}{more}",
        soft_wrap=True,
        highlight=False,
    )


def _of_model(text: str, model: str) -> str:
    """The spec with another model, its name as YAML writes it."""
    named = re.sub(
        r"(\bname: )(\"?package:[^\s,}\"]+\"?)", lambda found: found[1] + json.dumps(model), text, count=1
    )
    if named == text:
        raise SubveneError("the example names no model that could be replaced")
    return named
