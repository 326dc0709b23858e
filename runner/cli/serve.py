"""`subvene serve`: artifacts as models of an OpenAI-compatible server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from subvene.runner.cli._console import err, quiet_libraries
from subvene.runner.cli._options import (
    Attention,
    Device,
    DeviceMap,
    DtypeOption,
    Model,
    model_overrides,
)
from subvene.runner.cli._source import open_source


def serve(
    artifacts: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]ARTIFACT…", help="Artifacts, by the folder's name or another."),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen at; another than this machine's needs a key.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="SUBVENE_API_KEY", help="What clients have to give as their key.")
    ] = None,
    model: Model = None,
    dtype: DtypeOption = None,
    device: Device = None,
    device_map: DeviceMap = None,
    attn_implementation: Attention = None,
) -> None:
    """Serve artifacts as models of an OpenAI-compatible server, each answer with its receipt.

    Runs under transformers in this process; requests that arrive together are one batch. A request names an
    artifact as its model (`cheerful`, `cheerful=2.0`), or the model itself and `subvene` (`extra_body`).
    """
    overrides = model_overrides(
        name=model,
        dtype=dtype,
        device=device,
        device_map=device_map,
        attn_implementation=attn_implementation,
    )
    folders: dict[str, Path] = {}
    for text in artifacts:
        name, equals, folder = text.partition("=")
        source = open_source(Path(folder if equals else text))
        if source.artifact is None:
            raise typer.BadParameter(
                f"{text}: a spec file; fit it first (subvene fit), and serve the artifact"
            )
        name = name if equals else Path(text).name
        if name in folders:
            raise typer.BadParameter(f"two artifacts are called {name!r}; give one another NAME=")
        folders[name] = source.path
    quiet_libraries()
    from subvene.runner.engines.http import server
    from subvene.runner.engines.in_process import InProcess

    listening = server(InProcess.load(folders, **overrides), host, port, api_key)
    address = f"http://{host}:{listening.server_address[1]}/v1"
    err().print(f"serving {', '.join(folders)} at {address} (Ctrl-C ends it)", markup=False, soft_wrap=True)
    with listening:
        listening.serve_forever()
