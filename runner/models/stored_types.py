"""The number types in which the tensors of a checkpoint are stored: what its files' headers say, no weights.

transformers casts whatever is stored to the type of the parameter. Of an integer or a float8 without its
scales that makes a number that means nothing, and nobody says so.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import huggingface_hub
import safetensors
import torch
from pydantic import JsonValue
from torch import nn

from subvene.specs.regular_file import read_text

CacheFolder: TypeAlias = str | os.PathLike[str] | None
"""Where fetched files are kept; None: the Hub's own cache."""

# As transformers looks for them.
_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# By the names of safetensors and of torch: a cast of one of these to another loses precision alone.
_PLAIN = frozenset(["F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"])


class Stored(NamedTuple):
    """A tensor as it lies in a file.

    Attributes:
        file: the file's name.
        key: the tensor's name.
        type: its number type, by safetensors' name for it (I8) or torch's (int8).
    """

    file: str
    key: str
    type: str


def stored_types(source: str, revision: str | None = None, cache: CacheFolder = None) -> Iterator[Stored]:
    """Yields the tensors of a checkpoint that has been loaded, in the order of its files.

    Args:
        source: a folder, or a hub id whose files are in the cache.
        revision: of the hub id.
        cache: the cache that it is in; None: the Hub's own.

    Raises:
        FileNotFoundError: no file of weights is there.
    """
    declared = _config(source, revision, cache).get("transformers_weights")
    for name in (str(declared),) if declared else _FILES:
        path = file_of(source, name, revision, cache)
        if path is None:
            continue
        shards = [name]
        if name.endswith(".index.json"):
            shards = sorted({*json.loads(read_text(path))["weight_map"].values()})
        for shard in shards:
            yield from _of_file(file_of(source, shard, revision, cache), shard)
        return
    raise FileNotFoundError(f"none of {', '.join(_FILES)} is there")


def declares_quantization(source: str, revision: str | None = None, cache: CacheFolder = None) -> bool:
    """Whether a checkpoint's config says how its weights are quantised, of the model or of a part of it."""
    config = _config(source, revision, cache)
    parts = (config, *(part for part in config.values() if isinstance(part, dict)))
    return any(part.get("quantization_config") for part in parts)


def miscast(model: nn.Module, stored: Iterable[Stored], left_out: Callable[[str], bool]) -> list[Stored]:
    """Which tensors were cast to floating point from what is not a plain floating-point number.

    Args:
        model: the model that was loaded.
        stored: the tensors of its checkpoint.
        left_out: whether a tensor that the model does not have by its name was left out, not renamed.
    """
    own = model.state_dict()
    # Of tensors that the model renames or leaves out without a word, such as masks and position ids.
    buffers = {name.rpartition(".")[2] for name, buffer in model.named_buffers() if not _floats(buffer)}
    ignored = [re.compile(text) for text in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]

    def is_weight(key: str) -> bool:
        if key in own:
            return _floats(own[key])
        beside = left_out(key) or any(pattern.search(key) for pattern in ignored)
        return not beside and key.rpartition(".")[2] not in buffers

    return [tensor for tensor in stored if tensor.type not in _PLAIN and is_weight(tensor.key)]


def _floats(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point()


def _config(source: str, revision: str | None, cache: CacheFolder) -> dict[str, JsonValue]:
    path = file_of(source, "config.json", revision, cache)
    read = {} if path is None else json.loads(read_text(path))
    return read if isinstance(read, dict) else {}


def file_of(source: str, name: str, revision: str | None, cache: CacheFolder = None) -> Path | None:
    """A file of a folder, or of a hub id if it is in the cache that is named; None where it is not there."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    cached = huggingface_hub.try_to_load_from_cache(source, name, cache_dir=cache, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def _of_file(path: Path | None, name: str) -> Iterator[Stored]:
    if path is None:
        raise FileNotFoundError(f"the file {name}, which the index names, is not there")
    if name.endswith(".safetensors"):
        with safetensors.safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                yield Stored(name, key, file.get_slice(key).get_dtype())
        return
    # On `meta`, which has no storage to read.
    for key, tensor in torch.load(path, map_location="meta", weights_only=True).items():
        yield Stored(name, key, str(tensor.dtype).removeprefix("torch."))
