"""Options that several commands share, and what they mean for the spec."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple, TypedDict, cast

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
Host = Annotated[str, typer.Option(help="Address to listen at; another than this machine's needs a key.")]
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


class Prompts(NamedTuple):
    """What `generate` is asked.

    Attributes:
        texts: the prompts.
        rows: of each prompt the columns that the spec names; None where it names none.
    """

    texts: list[str]
    rows: list[dict[str, object]] | None


def read_prompts(prompts: Sequence[str], file: Path | None, columns: Mapping[str, str]) -> Prompts:
    """The prompts of `-p` (`-`: standard input, as one prompt) and `--prompts-file`.

    A file holds one a line, or rows (.jsonl, .json, .csv) with a column of prompts.

    Args:
        prompts: of `-p`.
        file: of `--prompts-file`.
        columns: that every row must have, and who needs each.

    Raises:
        SubveneError: the file cannot be read, or a column is missing.
        typer.BadParameter: there is no prompt, one is empty, or one has no columns.
    """
    stdin = typer.get_text_stream("stdin")
    texts = [stdin.read().strip() if prompt == "-" else prompt for prompt in prompts]
    rows: list[dict[str, object]] = []
    of_rows = file is not None and file.suffix.lower() in (".jsonl", ".json", ".csv")
    if columns and (texts or file is None or not of_rows):
        named = ", ".join(f"{column!r} ({who})" for column, who in columns.items())
        raise typer.BadParameter(
            f"the spec names columns of data: {named}; give --prompts-file with rows (.jsonl, .json, .csv) "
            "that have them beside each `prompt`, and no -p"
        )
    if file is not None and of_rows:
        found, rows = _prompts_of_rows(file, columns)
        texts += found
    elif file is not None:
        try:
            text = stdin.read() if str(file) == "-" else read_text(file)
        except (OSError, UnicodeDecodeError) as error:
            raise SubveneError(f"{file}: cannot be read as a file of prompts ({error})") from error
        texts += [line.strip() for line in text.splitlines() if line.strip()]
    if not texts:
        raise typer.BadParameter("no prompt: give -p TEXT, -p - or --prompts-file FILE")
    if not all(texts):
        raise typer.BadParameter("a prompt is empty")
    return Prompts(texts, rows if columns else None)


def _prompts_of_rows(file: Path, columns: Mapping[str, str]) -> tuple[list[str], list[dict[str, object]]]:
    """The prompts of a file of rows, and the columns of each.

    A row that holds more of a conversation than its prompt is refused.
    """
    from subvene.specs.columns import Used, asked, take
    from subvene.specs.rows import RowsError, file_rows, short

    found, rows, used = [], [], Used()
    for where, row in file_rows(file):
        if isinstance(row, str) and not columns:
            found.append(row)
            continue
        rows.append(_named(row, where, columns))
        taken = take(_rest(row, columns), where, {"prompt", "input"})
        if "prompt" not in taken:
            raise RowsError(f"{where}: expected a column `prompt` (or `question`, `instruction`)")
        messages = asked(taken, where)
        if len(messages) != 1 or messages[0]["role"] != "user":
            raise RowsError(f"{where}: expected a prompt of one user's turn, found {short(taken['prompt'])}")
        found.append(messages[0]["content"])
        used.note(taken)
    if used.unread:
        err().print(f"{file}: {used.in_words()}", soft_wrap=True)
    return found, rows


def _rest(row: Mapping[str, object], columns: Mapping[str, str]) -> Mapping[str, object]:
    """What a row holds beside the columns that the spec names, its prompt included, whoever names it."""
    from subvene.specs.columns import KNOWN

    rest = {name: value for name, value in row.items() if name not in columns}
    if any(KNOWN.get(name.lower()) == "prompt" for name in rest):
        return rest
    return {name: value for name, value in row.items() if name in rest or KNOWN.get(name.lower()) == "prompt"}


def _named(row: object, where: str, columns: Mapping[str, str]) -> dict[str, object]:
    """The columns of a row that the spec names."""
    from subvene.specs.rows import RowsError, short

    if not isinstance(row, Mapping):
        raise RowsError(f"{where}: expected a row with columns, found {short(row)}")
    for column, who in columns.items():
        if column not in row:
            there = ", ".join(map(str, row)) or "none"
            raise RowsError(f"{where}: expected a column {column!r}, which {who} names; there are: {there}")
    return {column: row[column] for column in columns}
