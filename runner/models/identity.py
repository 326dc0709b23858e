"""What a result depends on and where it came from: digests of models and tensors, versions, git state."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import safetensors.torch
import torch
import transformers
from pydantic import JsonValue
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from subvene.interventions.tensors import UNREADABLE
from subvene.runner.files.json_value import Fields, Json
from subvene.runner.models.chat_settings import chat_of
from subvene.runner.models.devices import input_device, named_values
from subvene.specs import SubveneError
from subvene.specs.regular_file import open_regular


class AlteredWarning(UserWarning):
    """A file of a run is not what was recorded of it."""


# Of a config, what says where a model lies or by what it was written rather than what it computes.
_NOT_CONTENT = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
# Of a checkpoint's folder, what transformers takes weights from, and which of them from which file.
_WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")
# And config, tokenizer and chat template.
_READING = ("*.json", "*.jinja", "*.model", "*.txt")
# Model → its hash, where whoever holds it says that nothing about it changes.
_KNOWN: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
PACKAGES = ("subvene", "pyvene", "torch", "transformers", "scikit-learn", "datasets")


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, shapes, types and values."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def holds(file: Path, recorded: str) -> bool:
    """Whether a file of tensors is there and is the one that a record names; says so where it is another.

    Args:
        file: safetensors.
        recorded: its `tensors_digest` when it was written.
    """
    if not file.is_file():
        return False
    try:
        if tensors_digest(safetensors.torch.load_file(file)) == recorded:
            return True
    except UNREADABLE:
        pass  # cut short or spoilt: it is not that file either
    message = f"{file}: is not what the run recorded of it (damaged, edited or mixed up); it is made again"
    warnings.warn(message, AlteredWarning, stacklevel=3)
    return False


def reading_sha256(model: Any, tokenizer: Any) -> str:
    """A hash of how texts become tokens and answers end: tokenizer, chat template and settings, end tokens.

    Args:
        model: whose generation config says what ends an answer; None where nothing is generated.
        tokenizer: with the chat settings that it carries.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    generation = getattr(model, "generation_config", None)
    ends = None if generation is None else generation.eos_token_id
    about = [
        vocabulary,
        getattr(tokenizer, "chat_template", None),
        getattr(tokenizer, "special_tokens_map", None),
        chat_of(tokenizer).to_dict(),
        ends,
    ]
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def model_sha256(model: Any) -> str:
    """A hash of a model's weights, buffers and config, and of the libraries and device that it runs on.

    Two copies of one model hash alike wherever they lie; one changed weight does not.

    Raises:
        SubveneError: some weights are kept nowhere, so that they cannot be read.
    """
    if (known := _KNOWN.get(model)) is not None:
        return known
    digest = hashlib.sha256()
    config = {k: v for k, v in model.config.to_dict().items() if k not in _NOT_CONTENT}
    attention = getattr(model.config, "_attn_implementation", None)
    versions = (torch.__version__, transformers.__version__)
    about = [type(model).__name__, config, attention, versions, str(input_device(model).type)]
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in named_values(model):
        if tensor.is_meta:
            raise SubveneError(
                f"the weight {name} has no value that could be read, so nothing that is computed from this "
                "model can be kept; load it whole, or go without a `work` folder"
            )
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        for part in _parts(tensor.detach()):
            content = part.cpu().contiguous().reshape(-1)
            digest.update(content.view(torch.uint8).numpy().data if content.numel() else b"")
    return digest.hexdigest()


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that a tensor is made of: itself, or of a quantised one values, scales and so on."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


@contextmanager
def hashed_once(model: Any) -> Iterator[None]:
    """Let `model_sha256` read the weights of a model once; nothing may change them while the block runs.

    Blocks may stand in each other; the outermost ends it.
    """
    if model in _KNOWN:
        yield
        return
    _KNOWN[model] = model_sha256(model)
    try:
        yield
    finally:
        del _KNOWN[model]


def checkpoint_sha256(source: str, config: Any, tokenizer: Any) -> str:
    """A hash of what a checkpoint computes, whose weights are read as files and not loaded.

    Two copies of one folder hash alike wherever they lie; one changed weight, token or word of the chat
    template does not. Of a repository on the Hub the commit stands for the weights, so none is downloaded.

    Args:
        source: a folder or a hub id, as it is given to transformers.
        config: read from there.
        tokenizer: read from there, with the chat settings that it carries.

    Raises:
        SubveneError: a file cannot be read, or it is not known of which commit a repository is.
    """
    computes = {k: v for k, v in config.to_dict().items() if k not in (*_NOT_CONTENT, "_commit_hash")}
    about = [_weights(source, config), computes, reading_sha256(None, tokenizer)]
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def files_sha256(source: str, config: Any) -> str:
    """A hash of the files that a model and its tokenizer are read from; of a Hub repository its commit.

    Args:
        source: a folder or a hub id, as it is given to transformers.
        config: read from there.

    Raises:
        SubveneError: a file cannot be read, or it is not known of which commit a repository is.
    """
    about = _weights(source, config, (*_WEIGHTS, *_READING))
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _weights(source: str, config: Any, patterns: Sequence[str] = _WEIGHTS) -> Any:
    """The digests of a folder's files of weights, by name; the commit of a repository."""
    if Path(source).is_dir():
        files = sorted({path for pattern in patterns for path in Path(source).glob(pattern)})
        return {path.name: _file_sha256(path) for path in files}
    commit = getattr(config, "_commit_hash", None)
    if commit is None:
        raise SubveneError(
            f"{source}: it is not known which commit of the repository is read, so nothing that comes of it "
            "can be kept; name a `revision`, or a local folder"
        )
    return commit


def _file_sha256(path: Path) -> str:
    try:
        about = path.stat()
        # A change of the content changes one of these; the time of change cannot be set back.
        return _hashed(path, (about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns))
    except OSError as error:
        raise SubveneError(f"{path}: cannot be read ({error.strerror})") from error


@functools.lru_cache
def _hashed(path: Path, _state: tuple[int, ...]) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {name: version(name) for name in PACKAGES}


class Environment(TypedDict):
    """Versions and machine."""

    versions: dict[str, str]
    python: str
    machine: str
    threads: int
    device: str


class GitState(TypedDict):
    """Commit of a repository, and whether it has changes."""

    commit: str
    changed: bool


class ExecutorManifest(TypedDict):
    """What did the units of work of a run, where it was not its own process."""

    kind: str
    version: NotRequired[str]
    cpus: NotRequired[float]
    gpus: NotRequired[float]


class EngineManifest(TypedDict):
    """What generated and scored what a run measured, and what a server said that it held, by hashes."""

    url: NotRequired[str]
    engine: str
    versions: dict[str, str]
    options: NotRequired[dict[str, JsonValue]]
    holds: NotRequired[dict[str, str]]
    artifacts: NotRequired[dict[str, str]]


class Manifest(TypedDict):
    """What there is to know about where the numbers of a run come from, and the experiment's name."""

    format: int
    name: NotRequired[str]
    spec: str
    environment: Environment
    git: GitState | None
    executor: NotRequired[ExecutorManifest]
    engine: NotRequired[EngineManifest]


class RunManifest(Manifest):
    """With what was called, what is said of the data, by use, and of each judge."""

    command: list[str]
    data: Mapping[str, Json]
    judges: list[Fields]
    files_relative_to: str


def environment() -> Environment:
    """Versions and machine, to stand beside every measured number."""
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def git_state(folder: Path) -> GitState | None:
    """Commit of the repository that holds `folder`, and whether it has changes; None outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def run_manifest(
    spec: str, folder: Path, *, data: Mapping[str, Json], judges: Sequence[Fields]
) -> RunManifest:
    """What there is to know about where the numbers of a run come from.

    Args:
        spec: the experiment as it is run, YAML.
        folder: where its relative files are looked for.
        data: what is said of the data, by use.
        judges: what is said of each judge.
    """
    return {
        "format": 1,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "spec": spec,
        "data": dict(data),
        "judges": list(judges),
        "environment": environment(),
        "git": git_state(folder),
        "files_relative_to": os.path.abspath(folder),
    }
