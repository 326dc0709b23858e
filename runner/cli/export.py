"""`subvene export`: an artifact as something that other tools load."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from subvene.runner.exchange.exports import FORMATS

if TYPE_CHECKING:
    from subvene.runner.exchange.exports.measurement import Equivalence

    pass

# The choices of `--to`, by name, as typer takes them.
Format = StrEnum("Format", {name.upper().replace("-", "_"): name for name in FORMATS})  # type: ignore[misc]


def export(
    source: SourcePath,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FOLDER", help="Where it goes.", show_default=False),
    ],
    to: Annotated[
        Format,
        typer.Option(
            "--to",
            help="; ".join(f"{name}: {what}" for name, what in FORMATS.items()) + ".",
            show_default=False,
        ),
    ],
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="Also write what is not exact, and measure its mean KL from the intervened model.",
        ),
    ] = False,
    model: Model = None,
    dtype: DtypeOption = None,
    device: Device = None,
    attn_implementation: Attention = None,
    as_json: Json = False,
) -> None:
    """Write an artifact in another format and measure it; what is not exact is refused, and why."""
    overrides = model_overrides(model, dtype, device, attn_implementation)
    found = open_source(source)
    with results(as_json) as emit:
        from subvene.runner.exchange.exports.driver import EQUIVALENCE, check_free
        from subvene.runner.exchange.exports.driver import export as write

        quiet_libraries()
        check_free(output)  # before the model is loaded
        written = write(found.load(**overrides), to.value, output, approximate=approximate)
        record = json.loads((written / EQUIVALENCE).read_text(encoding="utf-8"))
        if as_json:
            emit({"output": str(written), **record})
            return
    console = out()
    console.print(f"saved    {written}  {FORMATS[to.value]}", soft_wrap=True)
    for line in _measured(record):
        console.print(line, soft_wrap=True)


def _measured(record: Equivalence) -> list[str]:
    consumer = record["consumer"]
    reader = " ".join(filter(None, (consumer["name"], consumer["version"])))
    lines = [
        f"measured max |Δ logit| = {record['max_logit_difference']:.2g} between the intervened model and "
        f"this export in {reader} ({len(record['prompts'])} texts, {record['tokens']} tokens); the edit: "
        f"{record['max_logit_effect']:.2g}"
    ]
    if record["exactness"] == "approximate":
        from subvene.runner.exchange.exports.cards import is_worse_than_nothing

        lines.append(
            f"approximate: mean KL {record['mean_kl']:.3g} nats a token from the intervened model "
            f"({record['mean_kl_untouched']:.3g} without any edit)"
            + ("; further off than no edit at all" if is_worse_than_nothing(record) else "")
        )
        lines += [f"  {line}" for line in record["approximations"]]
    return lines
