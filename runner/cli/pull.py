"""`subvene pull`: an artifact from the Hugging Face Hub into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from subvene.runner.cli._console import out, quiet_libraries, results
from subvene.runner.cli._options import Json
from subvene.runner.cli.push import Repository


def pull(
    repository: Repository,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FOLDER", help="Where it goes.", show_default=False),
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.", show_default="main")] = None,
    as_json: Json = False,
) -> None:
    """Copy an artifact from the Hugging Face Hub into a folder: whole and checked, or not at all.

    With HF_HUB_OFFLINE=1 it comes from the Hub's cache. The token is HF_TOKEN, or what `hf auth login`
    stored.
    """
    with results(as_json) as emit:
        from subvene.runner.artifacts import hub

        quiet_libraries()
        commit = hub.pull(repository, output, revision=revision)
        if as_json:
            emit({"repository": repository, "commit": commit, "artifact": str(output)})
            return
    out().print(f"pulled   {output}  from {repository} at {commit[:12]}", soft_wrap=True)
