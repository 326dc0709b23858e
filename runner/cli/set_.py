"""`subvene set`: other values in an artifact's spec, with the tensors that it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from subvene.runner.cli._console import out, quiet_libraries, results
from subvene.runner.cli._options import Json
from subvene.specs import SpecError
from subvene.specs._nodes import Data
from subvene.specs.document import parse_document


def set_(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="An artifact's folder.", show_default=False)
    ],
    changes: Annotated[
        list[str],
        typer.Argument(
            metavar="FIELD=VALUE…",
            help="A field of its intervention, or NAME.FIELD where it has several, and the new value as "
            "YAML: layer=3, strength=2, positions=response, 'positions={last: 1}'.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FOLDER",
            help="Where the new artifact goes.",
            show_default="in its place",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Change layers, strengths, positions or other fields of an artifact; its hashes and card are renewed.

    What the artifact holds no tensors for is refused. The model's weights are not loaded.
    """
    wanted = _parsed(changes)
    with results(as_json) as emit:
        from subvene.runner.artifacts.amendment import amend
        from subvene.runner.artifacts.artifact import read

        quiet_libraries()
        written = amend(artifact, wanted, output)
        amended = read(written).provenance["amended"]
        told = amended[-len(wanted) :] if isinstance(amended, list) else []
        if as_json:
            emit({"artifact": str(written), "amended": told})
            return
    console = out()
    for line in told:
        console.print(f"set      {line}", soft_wrap=True, markup=False)
    console.print(f"saved    {written}", soft_wrap=True, markup=False)


def _parsed(changes: list[str]) -> dict[str, Data]:
    """Fields with their values.

    Raises:
        typer.BadParameter: not of the form FIELD=VALUE, no YAML value, or a field given twice.
    """
    parsed: dict[str, Data] = {}
    for change in changes:
        field, equals, text = change.partition("=")
        if not field or not equals or not text.strip():
            raise typer.BadParameter(f"{change!r}: expected FIELD=VALUE, such as layer=3")
        if field in parsed:
            raise typer.BadParameter(f"{field} is given twice")
        try:
            data = parse_document(f"value: {text}", change, "yaml").data
        except SpecError as error:
            raise typer.BadParameter(f"{change!r}: {text!r} is no YAML value ({error})") from None
        if data.keys() != {"value"}:
            raise typer.BadParameter(f"{change!r}: expected one value")
        parsed[field] = data["value"]
    return parsed
