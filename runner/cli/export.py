"""`subvene export`: an artifact as something that other tools load."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from subvene.runner.cli._console import out, quiet_libraries, results
from subvene.runner.cli._options import (
    Attention,
    Device,
    DtypeOption,
    Json,
    Model,
    SourcePath,
    model_overrides,
)
from subvene.runner.cli._source import open_source


class Format(StrEnum):
    """The choices of `--to`."""

    CHECKPOINT = "checkpoint"


def export(
    source: SourcePath,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FOLDER", help="Where it goes.", show_default=False),
    ],
    to: Annotated[
        Format,
        typer.Option(
            "--to", help="checkpoint: an ordinary model with the edits in its weights.", show_default=False
        ),
    ],
    model: Model = None,
    dtype: DtypeOption = None,
    device: Device = None,
    attn_implementation: Attention = None,
    as_json: Json = False,
) -> None:
    """Write an artifact in a form that needs no subvene; what has no exact form is refused, and why."""
    overrides = model_overrides(
        name=model,
        dtype=dtype and dtype.value,
        device=device,
        attn_implementation=attn_implementation,
    )
    found = open_source(source)
    with results(as_json) as emit:
        from subvene.runner.exports.checkpoint import save_baked

        quiet_libraries()
        written = save_baked(found.load(**overrides), output)
        if as_json:
            emit({"output": str(written), "format": to.value})
            return
    what = "an ordinary checkpoint, for AutoModelForCausalLM"
    out().print(f"saved    {written}  {what}", soft_wrap=True)
