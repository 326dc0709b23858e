"""`subvene serve`: artifacts as models of an OpenAI-compatible server."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from subvene.runner.cli._console import err, quiet_libraries
from subvene.runner.cli._options import (
    Attention,
    Device,
    DeviceMap,
    DtypeOption,
    Host,
    Model,
    model_overrides,
)
from subvene.runner.cli._source import open_artifacts
from subvene.specs import ModelSpec


class Engine(StrEnum):
    """What runs the model."""

    auto = "auto"
    vllm = "vllm"
    transformers = "transformers"


def serve(
    artifacts: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]ARTIFACT… [vLLM's options]",
            help="Artifacts, by the folder's name or another; then any option of vLLM's server.",
        ),
    ],
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="SUBVENE_API_KEY", help="What clients have to give as their key.")
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="What runs the model; auto: vLLM where it is installed.")
    ] = Engine.auto,
    collect: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE[LAYER]", help="Where requests may have activations collected; repeatable."
        ),
    ] = None,
    model: Model = None,
    dtype: DtypeOption = None,
    device: Device = None,
    device_map: DeviceMap = None,
    attn_implementation: Attention = None,
) -> None:
    """Serve artifacts as models of an OpenAI-compatible server, each answer with its receipt.

    Runs in vLLM where it is installed, else under transformers in this process; requests that arrive together
    are one batch. A request names an artifact as its model (`cheerful`, `cheerful=2.0`), or the model itself
    and `subvene` (`extra_body`).
    """
    overrides = model_overrides(
        name=model,
        dtype=dtype,
        device=device,
        device_map=device_map,
        attn_implementation=attn_implementation,
    )
    first = next((i for i, text in enumerate(artifacts) if text.startswith("-")), len(artifacts))
    names, options = artifacts[:first], artifacts[first:]
    if not names:
        raise typer.BadParameter("name an artifact before vLLM's options")
    opened = open_artifacts(names)
    folders = {name: source.path for name, source in opened.items()}
    base = next(iter(opened.values())).spec.model
    from subvene.runner.engines.vllm.versions import installed

    if engine is Engine.vllm or (engine is Engine.auto and installed()):
        unknown = sorted(set(overrides) - {"name", "dtype"})
        if unknown:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in unknown)
            raise typer.BadParameter(
                f"{named}: of transformers; see vLLM's own options, or --engine transformers"
            )
        _in_vllm(folders, base.model_copy(update=overrides), host, port, api_key, collect or [], options)
        return
    if options:
        raise typer.BadParameter(
            f"no such option: {options[0]} (vLLM's need vLLM: pip install 'subvene[vllm]')"
        )
    quiet_libraries()
    from subvene.runner.engines.http import server
    from subvene.runner.engines.in_process import InProcess

    listening = server(InProcess.load(folders, collect=collect or (), **overrides), host, port, api_key)
    address = f"http://{host}:{listening.server_address[1]}/v1"
    err().print(f"serving {', '.join(folders)} at {address} (Ctrl-C ends it)", markup=False, soft_wrap=True)
    with listening:
        listening.serve_forever()


def _in_vllm(
    folders: dict[str, Path],
    base: ModelSpec,
    host: str,
    port: int,
    api_key: str | None,
    collect: list[str],
    options: list[str],
) -> None:
    from subvene.runner.engines.vllm.serve import command, serve
    from subvene.runner.models.loading import resolve

    more = ["--dtype", str(base.dtype), "--served-model-name", base.name]
    if base.revision is not None and not Path(base.name).exists() and base.package_file is None:
        more += ["--revision", base.revision]
    arguments = command(
        folders,
        resolve(base),
        host=host,
        port=port,
        api_key=api_key,
        collect=collect,
        options=[*more, *options],
    )
    serve(arguments)
