"""`subvene ui`: the playground, a page on this machine."""

from __future__ import annotations

import webbrowser
from importlib.resources import files
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
from subvene.runner.cli._source import Source, experiment, open_artifacts, open_source
from subvene.specs import SubveneError
from subvene.specs.regular_file import read_text

_EXAMPLE, _DATA = "quickstart.yaml", "data/cheerful-pairs.yaml"


def ui(
    artifacts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[[NAME=]ARTIFACT…]",
            help="Artifacts of one model, by the folder's name or another; left out: the quickstart's "
            "example on the model that comes with subvene.",
            show_default=False,
        ),
    ] = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
    api_key: Annotated[
        str | None, typer.Option(envvar="SUBVENE_API_KEY", help="What the page and clients have to give.")
    ] = None,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    model: Model = None,
    dtype: DtypeOption = None,
    device: Device = None,
    device_map: DeviceMap = None,
    attn_implementation: Attention = None,
) -> None:
    """Open a page on this machine with a slider for every strength: baseline beside steered, streamed.

    Tokens are coloured by how far they point along a vector of the artifact; what is on the screen can be had
    as a file that `subvene run` runs. The server answers OpenAI's protocol too, as that of `subvene serve`.
    """
    overrides = model_overrides(
        name=model,
        dtype=dtype,
        device=device,
        device_map=device_map,
        attn_implementation=attn_implementation,
    )
    opened = open_artifacts(artifacts or [])
    quiet_libraries()
    opened = opened or {"cheerful": _example()}
    from subvene.runner.engines.in_process import InProcess
    from subvene.runner.engines.playground.screen import Shown
    from subvene.runner.engines.playground.server import server

    engine = InProcess.load({name: source.path for name, source in opened.items()}, **overrides)
    shown = {name: Shown(m, opened[name].folder) for name, m in engine.artifacts.items()}
    listening = server(engine, shown, host, port, api_key)
    address = f"http://{host}:{listening.server_address[1]}/"
    err().print(f"{', '.join(shown)}: {address} (Ctrl-C ends it)", markup=False, soft_wrap=True)
    if browser:
        webbrowser.open(address)
    with listening:
        listening.serve_forever()


def _example() -> Source:
    """The quickstart's artifact: fitted once, and kept in the user's cache.

    Raises:
        SubveneError: its model is not installed.
    """
    from importlib.metadata import version

    from subvene.runner.artifacts import artifact
    from subvene.runner.files.cache import cache_folder
    from subvene.runner.files.ledger import digest
    from subvene.runner.recipes.fitting import fit

    examples = Path(str(files("subvene.examples")))
    made_of = [version("subvene"), *(read_text(examples / name) for name in (_EXAMPLE, _DATA))]
    folder = cache_folder() / "playground" / digest(made_of)[:16] / "cheerful"
    if not artifact.is_artifact(folder):
        err().print(f"no artifact is given: fitting {_EXAMPLE}, once", markup=False)
        spec = experiment(examples / _EXAMPLE, "there is no `fit:` block")
        try:
            fit(spec, folder=examples).save_pretrained(folder)
        except SubveneError as error:
            raise SubveneError(
                f"no artifact is given, and the example cannot be fitted here ({error}); give an artifact: "
                "subvene ui FOLDER"
            ) from error
    return open_source(folder)
