"""Activations on disk: safetensors shards and an index, written so that a killed collection can go on.

This file knows how rows are stored and read back, and nothing of models. A folder holds `index.json`, which
is written first and says which shards there will be, and the shards, each complete or not there: it is
written beside its place, flushed and renamed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from subvene.runner.files.leftovers import clean_folder
from subvene.runner.files.storage import atomic_file
from subvene.runner.passes.passes import Way
from subvene.specs import Site, SubveneError, tensor_name
from subvene.specs.regular_file import read_text

INDEX, FORMAT = "index.json", 2
_KEY = "activations"


class StoreError(SubveneError):
    """Stored activations are missing or not what their index says."""


@dataclass(frozen=True)
class Index:
    """What a folder of shards holds.

    Attributes:
        content: hash of all that the activations depend on.
        site: where they were read.
        layers: 0-based block indices.
        width: of one row.
        shard_rows: rows of each shard, in order.
        way: how texts that share a prefix were read (see `passes`).
        note: why they were not read in a way that costs less.
    """

    content: str
    site: Site
    layers: tuple[int, ...]
    width: int
    shard_rows: tuple[int, ...]
    way: Way
    note: str | None = None

    def file(self, shard: int) -> str:
        """The name of a shard's file."""
        return f"shard-{shard:05}.safetensors"


class Store:
    """A folder of shards.

    Args:
        folder: where it is; made by `create`.
        index: what it holds.
    """

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder, self.index = folder, index

    @classmethod
    def open(cls, folder: Path, content: str) -> Store | None:
        """The store that has been begun in a folder; None if there is none, or one of something else."""
        try:
            fields = json.loads(read_text(folder / INDEX))
            if fields.pop("format") != FORMAT or fields["content"] != content:
                return None
            lists = {name: tuple(fields[name]) for name in ("layers", "shard_rows")}
            return cls(folder, Index(**{**fields, **lists}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # whatever stands there is no index of ours, and is replaced

    @classmethod
    def create(cls, folder: Path, index: Index) -> Store:
        """Begin a store; shards of another one that lie there go."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*shard-*.safetensors*"):
            path.unlink()
        _write(folder / INDEX, json.dumps({"format": FORMAT, **asdict(index)}, indent=1).encode())
        return cls(folder, index)

    def has(self, shard: int) -> bool:
        """Whether a shard is there and is what the index says."""
        path = self.folder / self.index.file(shard)
        rows = self.index.shard_rows[shard]
        try:
            # Opening compares the file's length with what its header promises.
            with safetensors.safe_open(path, "pt") as file:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
                content = (file.metadata() or {}).get(_KEY)
        except (OSError, safetensors.SafetensorError):
            return False
        expected = {self._name(layer): [rows, self.index.width] for layer in self.index.layers}
        return content == self._mark(shard) and shapes == expected

    def put(self, shard: int, rows: Mapping[int, torch.Tensor]) -> None:
        """Write a shard: layer → float32 [its rows, width]."""
        tensors = {self._name(layer): rows[layer].contiguous() for layer in self.index.layers}
        content = safetensors.torch.save(tensors, metadata={_KEY: self._mark(shard)})
        _write(self.folder / self.index.file(shard), content)

    def clean(self) -> None:
        """Remove what a killed writer left half-written."""
        clean_folder(self.folder)
        for path in self.folder.glob(".*.new"):
            path.unlink()  # as an earlier subvene called them

    def read(
        self, layer: int, rows: torch.Tensor | None = None, columns: slice | None = None
    ) -> torch.Tensor:
        """Rows of one layer, float32 [rows, columns]; only these are read from the mapped files.

        Args:
            layer: 0-based, one of the index's.
            rows: Long[n], in any order; None: all of them.
            columns: part of the width, such as one head's; None: all of it.

        Raises:
            StoreError: the layer was not collected, a row is out of range, or a shard is not there.
        """
        index = self.index
        if layer not in index.layers:
            raise StoreError(
                f"{self.folder}: layer {layer} was not collected, only {', '.join(map(str, index.layers))}"
            )
        total = sum(index.shard_rows)
        rows = torch.arange(total) if rows is None else torch.as_tensor(rows, dtype=torch.long)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < total:
            raise StoreError(f"{self.folder}: expected rows from 0 to {total - 1}, found {rows.tolist()[:9]}")
        columns = slice(0, index.width) if columns is None else columns
        result = torch.empty(len(rows), len(range(index.width)[columns]))
        first = 0
        for shard, count in enumerate(index.shard_rows):
            places = ((rows >= first) & (rows < first + count)).nonzero().squeeze(1)
            if len(places):
                inner = rows[places] - first
                low, high = int(inner.min()), int(inner.max()) + 1
                path = self.folder / index.file(shard)
                try:
                    with safetensors.safe_open(path, "pt") as file:
                        part = file.get_slice(self._name(layer))[low:high, columns]
                except (OSError, safetensors.SafetensorError) as error:
                    raise StoreError(f"{path}: cannot be read ({error}); collect again") from error
                result[places] = part[inner - low]
            first += count
        return result

    def _mark(self, shard: int) -> str:
        return f"{self.index.content}/{shard}"

    def _name(self, layer: int) -> str:
        return tensor_name(_KEY, self.index.site, layer)


def rows_per_shard(layers: Sequence[int], width: int, shard_bytes: int) -> int:
    """How many rows of float32 make about so many bytes."""
    return max(1, shard_bytes // (4 * width * len(layers)))


def _write(path: Path, content: bytes) -> None:
    """A file that is there whole or not at all, even if the machine stops."""
    with atomic_file(path, "wb") as file:
        file.write(content)
