"""A foreign file or folder, read without executing anything of it: once, bounded, hashed as it was read."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from pydantic import JsonValue

from subvene.interventions.tensors import UNREADABLE, why_not_dense
from subvene.runner.artifacts.hub import blobs
from subvene.runner.files.json_value import Json
from subvene.specs import SubveneError
from subvene.specs.regular_file import open_regular

# Far beyond any vector or adapter, and small enough to be held in memory.
MAX_BYTES = 4 * 2**30
MAX_JSON = 2**20

_CONVERT = (
    "reading a pickle runs whatever code it holds, so it is refused; where you trust it, convert it first"
)


class ImportRefusedError(SubveneError):
    """A foreign file is not what it should be, or has no exact counterpart here; the message says why."""


class Opened:
    """A file, or a folder with files; every content is read once, so that what was hashed is what is used.

    Args:
        path: the file or folder.
        origin: where it was fetched from; None: it was named itself.
        overrides: what is said elsewhere of fields of its config.

    Raises:
        ImportRefusedError: there is no such thing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        origin: str | None = None,
        overrides: Mapping[str, Json] | None = None,
    ) -> None:
        self.path = Path(path)
        self.origin, self.overrides = origin or self.path.name, overrides or {}
        if not self.path.exists():
            raise ImportRefusedError(f"{self.path}: no such file or folder")
        self.is_folder = self.path.is_dir()
        self._content: dict[str, bytes] = {}

    @property
    def names(self) -> list[str]:
        """The names of a folder's files; of a file, its own."""
        if not self.is_folder:
            return [self.path.name]
        return sorted(p.name for p in self.path.iterdir() if p.is_file())

    @property
    def sha256(self) -> dict[str, str]:
        """The hash of every file that was read, as it was read."""
        return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(self._content.items())}

    @property
    def is_torch_file(self) -> bool:
        """Whether this is a file that `torch.save` may have written; what it holds is seen later."""
        if self.is_folder or self.path.suffix in (".npz", ".safetensors"):
            return False
        # It writes a zip archive, and wrote a pickle before PyTorch 1.6.
        return self.head(count=4) == b"PK\x03\x04" or self.path.suffix in (".pt", ".pth")

    def beside(self, name: str) -> Opened | None:
        """Another file in a file's folder, whose hash is kept with this one's; None where there is none."""
        if not (path := self.path.parent / name).is_file():
            return None
        found = Opened(path)
        found._content = self._content
        return found

    def head(self, name: str | None = None, count: int = 8) -> bytes:
        """The first bytes of a file, to tell what it is."""
        with _open(self._path(name), follow=name is None) as stream:
            return stream.read(count)

    def read(self, name: str | None = None, limit: int = MAX_BYTES) -> bytes:
        """The content of the file, or of a folder's file.

        Raises:
            ImportRefusedError: no such regular file, a link out of the folder, or larger than `limit` bytes.
        """
        label = name or self.path.name
        if label not in self._content:
            with _open(self._path(name), follow=name is None) as stream:
                data = stream.read(limit + 1)
            if len(data) > limit:
                raise ImportRefusedError(
                    f"{self.where(name)}: larger than {limit} bytes, which is no such file"
                )
            self._content[label] = data
        return self._content[label]

    def where(self, name: str | None = None) -> Path:
        """What error messages call a file."""
        return self.path if name is None else self.path / name

    def json(self, name: str | None = None) -> dict[str, JsonValue]:
        """A JSON object."""
        try:
            found = json.loads(self.read(name, MAX_JSON))
        except (ValueError, RecursionError) as error:
            raise ImportRefusedError(f"{self.where(name)}: not JSON ({error})") from error
        if not isinstance(found, dict):
            raise ImportRefusedError(
                f"{self.where(name)}: expected a JSON object, found {type(found).__name__}"
            )
        return found

    def safetensors(self, name: str | None = None) -> dict[str, torch.Tensor]:
        """The tensors of a safetensors file."""
        try:
            found = safetensors.torch.load(self.read(name))
        except UNREADABLE as error:
            raise ImportRefusedError(
                f"{self.where(name)}: not a readable safetensors file ({error})"
            ) from error
        _refuse_odd(found.values(), self.where(name))
        return found

    def torch(self, name: str | None = None) -> Any:
        """What `torch.save` wrote: tensors and plain containers of them, and nothing else."""
        where, data = self.where(name), self.read(name)
        if where.suffix in (".pkl", ".pickle", ".joblib"):
            raise ImportRefusedError(f"{where}: {_CONVERT}: torch.save(tensor, 'vector.pt')")
        self._refuse_compressed(data, where)
        try:
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ImportRefusedError(
                f"{where}: holds more than tensors, and nothing of it was executed ({_first_line(error)}); "
                "where you trust it, save the tensors alone: torch.save(tensor, 'vector.pt')"
            ) from error
        except Exception as error:  # a malformed file stops its reader with whatever it trips over
            raise ImportRefusedError(
                f"{where}: not a readable PyTorch file ({_first_line(error)})"
            ) from error
        tensors = _tensors(found)
        _refuse_odd(tensors, where)
        for tensor in tensors:
            # A tensor may claim any shape over a small storage by strides of 0, and cost its shape later.
            if tensor.numel() * tensor.element_size() > len(data):
                raise ImportRefusedError(
                    f"{where}: a tensor claims the shape {list(tensor.shape)}, more than the file holds"
                )
        return found

    def numpy(self, name: str | None = None) -> np.ndarray[Any, Any]:
        """The array of a .npy file."""
        return _array(self.read(name), self.where(name))

    def numpy_archive(self, name: str | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays of a .npz file."""
        where, data = self.where(name), self.read(name)
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = archive.infolist()
                if sum(member.file_size for member in members) > MAX_BYTES:
                    raise ImportRefusedError(f"{where}: unpacks to more than {MAX_BYTES} bytes")
                return {
                    member.filename.removesuffix(".npy"): _array(
                        # The size that is declared is the most that is unpacked.
                        archive.open(member).read(member.file_size),
                        Path(f"{where}[{member.filename}]"),
                    )
                    for member in members
                }
        except ImportRefusedError:
            raise
        except Exception as error:  # a malformed file stops its reader with whatever it trips over
            raise ImportRefusedError(f"{where}: not a readable .npz file ({_first_line(error)})") from error

    def _path(self, name: str | None) -> Path:
        if name is None:
            return self.path
        if Path(name).name != name or name == ".." or "\\" in name or not name.isprintable():
            raise ImportRefusedError(f"{self.path}: {name!r} is not a plain file name")
        path = self.path / name
        if path.is_symlink():
            path = path.resolve()
            # The Hub's cache keeps a snapshot as links into its blobs.
            if not any(path.is_relative_to(place.resolve()) for place in (self.path, *blobs(self.path))):
                raise ImportRefusedError(f"{self.path / name}: a link that leaves its folder")
        if not path.is_file():
            raise ImportRefusedError(f"{self.path / name}: missing")
        return path

    @staticmethod
    def _refuse_compressed(data: bytes, where: Path) -> None:
        """`torch.save` compresses nothing: an archive that does is made to grow."""
        if not data.startswith(b"PK"):
            return
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                grows = sum(member.file_size for member in archive.infolist()) > len(data)
        except Exception as error:  # as for an archive of numpy's
            raise ImportRefusedError(f"{where}: not a readable PyTorch file ({error})") from error
        if grows:
            raise ImportRefusedError(
                f"{where}: unpacks to more bytes than it has, which torch.save never writes"
            )


def _open(path: Path, *, follow: bool) -> io.BufferedReader:
    try:
        return open_regular(path, follow=follow)
    except OSError as error:
        raise ImportRefusedError(f"{path}: cannot be read ({error.strerror})") from error


def _array(data: bytes, where: Path) -> np.ndarray[Any, Any]:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = header(stream)
        if dtype.hasobject:
            raise ImportRefusedError(
                f"{where}: holds Python objects, that is a pickle; {_CONVERT}: "
                "numpy.save('top_heads.npy', numpy.array(top_heads, dtype=int))"
            )
        if dtype.kind not in "biuf":
            raise ImportRefusedError(f"{where}: holds {dtype}, expected plain real numbers; convert it first")
        # numpy would set memory aside for whatever the header claims.
        if stream.tell() + math.prod(shape) * dtype.itemsize != len(data):
            raise ImportRefusedError(
                f"{where}: its header claims {list(shape)}, which is not what follows it"
            )
        stream.seek(0)
        return np.load(stream, allow_pickle=False)
    except ImportRefusedError:
        raise
    except Exception as error:  # a malformed file stops its reader with whatever it trips over
        if data[:1] == b"\x80":
            raise ImportRefusedError(f"{where}: a pickle; {_CONVERT}: numpy.save(file, array)") from error
        raise ImportRefusedError(f"{where}: not a readable .npy file ({_first_line(error)})") from error


def _refuse_odd(tensors: Iterable[torch.Tensor], where: Path) -> None:
    """Refuse what is no plain real numbers, before any importer asks its shape."""
    for tensor in tensors:
        why = why_not_dense(tensor)
        # Two numbers in a byte, which torch cannot take apart; torch 2.6 has no such type to compare with.
        if tensor.is_complex() or str(tensor.dtype).startswith("torch.float4"):
            why = why or f"is {tensor.dtype}"
        if why:
            raise ImportRefusedError(
                f"{where}: a tensor {why}; expected plain real numbers: convert it first "
                "(`tensor.to_dense()`, `.dequantize()`, `.float()`) and save it again"
            )


def _tensors(found: Any) -> list[torch.Tensor]:
    """Every tensor in containers, which a file may have put into themselves."""
    tensors: list[torch.Tensor] = []
    seen: set[int] = set()
    rest = [found]
    while rest:
        value = rest.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        elif isinstance(value, dict):
            rest += value.values()
        elif isinstance(value, list | tuple | set):
            rest += value
    return tensors


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
