"""Options that several commands share, and what they mean for the spec."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypedDict, cast

import typer
from pydantic import ValidationError

from subvene.runner.cli._console import err
from subvene.specs import InterventionSpec, ModelSpec, SubveneError
from subvene.specs.regular_file import read_text

_MODEL = "Model"


class Dtype(StrEnum):
    """The choices of `--dtype`."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


System = Annotated[str | None, typer.Option("--system", help="A system prompt.")]
Strengths = Annotated[
    list[str] | None,
    typer.Option("--strength", metavar="X|NAME=X", help="Strength in place of the spec's. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
SourcePath = Annotated[
    Path,
    typer.Argument(
        metavar="SPEC|ARTIFACT",
        help="A spec file, an artifact's folder or Hub repository, or the output of `subvene run`.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None, typer.Option("--model", help="Another model than the spec names.", rich_help_panel=_MODEL)
]
DtypeOption = Annotated[
    Dtype | None, typer.Option("--dtype", help="Floating-point type of the weights.", rich_help_panel=_MODEL)
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:0, mps, …", rich_help_panel=_MODEL)
]
DeviceMap = Annotated[
    str | None,
    typer.Option("--device-map", help="Spread the model over devices: auto, …", rich_help_panel=_MODEL),
]
Attention = Annotated[
    str | None, typer.Option("--attn-implementation", help="eager, sdpa, …", rich_help_panel=_MODEL)
]


class ModelFields(TypedDict, total=False):
    """Fields of `model:`."""

    name: str
    dtype: str
    device: str
    device_map: str
    attn_implementation: str
    revision: str


def model_overrides(
    name: str | None,
    dtype: Dtype | None,
    device: str | None,
    attn_implementation: str | None,
    device_map: str | None = None,
    revision: str | None = None,
) -> ModelFields:
    """The fields of `model:` that were given, checked.

    Raises:
        typer.BadParameter: a value is not what the field takes.
    """
    given = {
        "name": name,
        "dtype": dtype and dtype.value,
        "device": device,
        "device_map": device_map,
        "attn_implementation": attn_implementation,
        "revision": revision,
    }
    fields = {field: value for field, value in given.items() if value is not None}
    try:
        ModelSpec.model_validate({"name": "any"} | fields)
    except ValidationError as error:
        problems = [f"--{str(e['loc'][0]).replace('_', '-')}: {e['msg']}" for e in error.errors()]
        raise typer.BadParameter("; ".join(problems).replace("--name:", "--model:")) from error
    return cast(ModelFields, fields)


def parse_strengths(
    given: Sequence[str], spec: InterventionSpec, names: Sequence[str]
) -> dict[str, float | tuple[float, ...]]:
    """Every intervention's strength: those given as `X` or `NAME=X`, and the spec's own for the rest.

    Raises:
        typer.BadParameter: no number, no such intervention, or a bare number for several.
    """
    strengths = {name: declared.strength for name, declared in zip(names, spec.interventions, strict=True)}
    for text in given:
        name, equals, number = text.rpartition("=")
        if not equals and len(names) > 1:
            raise typer.BadParameter(
                f"--strength {text}: there are several interventions; "
                f"say NAME={text} with one of: {', '.join(names)}"
            )
        name = name if equals else names[0]
        if name not in strengths:
            raise typer.BadParameter(
                f"--strength {text}: no intervention is called {name!r}; there are: {', '.join(names)}"
            )
        try:
            value = float(number)
        except ValueError:
            raise typer.BadParameter(f"--strength {text}: {number!r} is no number") from None
        if not math.isfinite(value):
            raise typer.BadParameter(f"--strength {text}: expected a finite number")
        strengths[name] = value
    return strengths


def read_prompts(prompts: Sequence[str], file: Path | None) -> list[str]:
    """The prompts of `-p` (`-`: standard input, as one prompt) and `--prompts-file`.

    A file holds one a line, or rows (.jsonl, .json, .csv) with a column of prompts.

    Raises:
        SubveneError: the file cannot be read.
        typer.BadParameter: there is no prompt, or one is empty.
    """
    stdin = typer.get_text_stream("stdin")
    found = [stdin.read().strip() if prompt == "-" else prompt for prompt in prompts]
    if file is not None and file.suffix.lower() in (".jsonl", ".json", ".csv"):
        found += _prompts_of_rows(file)
    elif file is not None:
        try:
            text = stdin.read() if str(file) == "-" else read_text(file)
        except (OSError, UnicodeDecodeError) as error:
            raise SubveneError(f"{file}: cannot be read as a file of prompts ({error})") from error
        found += [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise typer.BadParameter("no prompt: give -p TEXT, -p - or --prompts-file FILE")
    if not all(found):
        raise typer.BadParameter("a prompt is empty")
    return found


def _prompts_of_rows(file: Path) -> list[str]:
    """The prompts of a file of rows; a row that holds more of a conversation than its prompt is refused."""
    from subvene.specs.columns import Used, asked, take
    from subvene.specs.rows import RowsError, file_rows, short

    found, used = [], Used()
    for where, row in file_rows(file):
        if isinstance(row, str):
            found.append(row)
            continue
        taken = take(row, where, {"prompt", "input"})
        if "prompt" not in taken:
            raise RowsError(f"{where}: expected a column `prompt` (or `question`, `instruction`)")
        messages = asked(taken, where)
        if len(messages) != 1 or messages[0]["role"] != "user":
            raise RowsError(f"{where}: expected a prompt of one user's turn, found {short(taken['prompt'])}")
        found.append(messages[0]["content"])
        used.note(taken)
    if used.unread:
        err().print(f"{file}: {used.in_words()}", soft_wrap=True)
    return found
