"""`subvene push`: an artifact or a baked checkpoint to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from subvene.runner.cli._console import out, quiet_libraries, results
from subvene.runner.cli._options import Json

Repository = Annotated[
    str, typer.Argument(metavar="USER/NAME", help="The repository on the Hub.", show_default=False)
]


def push(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="ARTIFACT",
            help="An artifact's folder (also RUN/artifacts/NAME), the output of `subvene run`, or a baked "
            "checkpoint.",
            show_default=False,
        ),
    ],
    repository: Repository,
    private: Annotated[
        bool,
        typer.Option("--private", help="Make the repository private; an existing public one is refused."),
    ] = False,
    branch: Annotated[
        str | None,
        typer.Option(help="Commit to this branch, made if it does not exist.", show_default="main"),
    ] = None,
    message: Annotated[str | None, typer.Option("-m", "--message", help="The commit's message.")] = None,
    licence: Annotated[
        str | None,
        typer.Option("--license", help="For the card, as the Hub names it: apache-2.0, mit, …"),
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(
            "--results",
            metavar="FILE",
            help="A run's results.json, for the card; left out: of the run that it lies in.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Push an artifact to the Hugging Face Hub: one commit, with a complete model card.

    The repository is made if it does not exist. The token is HF_TOKEN, or what `hf auth login` stored.
    """
    with results(as_json) as emit:
        from subvene.runner.artifacts import hub
        from subvene.runner.reports.pushed import measured_of

        quiet_libraries()
        commit = hub.push(
            source,
            repository,
            private=private or None,
            branch=branch,
            commit_message=message,
            licence=licence,
            measured=measured_of(source, measured),
        )
        if as_json:
            emit({"repository": repository, "commit": commit.oid, "url": commit.commit_url})
            return
    console = out()
    console.print(f"pushed   {source}  to {repository}", soft_wrap=True)
    console.print(f"commit   {commit.commit_url}", soft_wrap=True)
