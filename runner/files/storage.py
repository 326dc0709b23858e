"""Writing so that a file or folder is there whole or not at all, and a disk that refuses says so clearly."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from subvene.runner.files import leftovers
from subvene.specs import SubveneError

_ADVICE = {
    errno.ENOSPC: "free some space there, or choose another place",
    errno.EDQUOT: "your quota there is used up: free some space, or choose another place",
    errno.EFBIG: "files there may not be so large (`ulimit -f`, or the file system's own limit)",
    errno.EROFS: "the file system can only be read: choose another place",
    errno.EIO: "the disk fails: choose another place",
}
# As libraries in Rust write an error of the system into theirs.
_IN_TEXT = re.compile(r"\(os error (\d+)\)")
# torch.save keeps no reason: its archive ended elsewhere than what was written to it.
_TORCH = ("inline_container.cc", "PytorchStreamWriter")


class StorageError(SubveneError):
    """A disk does not take what is written to it: it is full, or may not be written."""


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns what any library raises when a disk refuses a write into one error that names the place.

    Raises:
        StorageError: the disk is full, the quota used up, the file too large, the file system read-only.
    """
    try:
        yield
    except SubveneError:
        raise
    except Exception as error:
        said = _refusal(error)
        if said is None:
            raise
        raise StorageError(
            f"{path}: cannot be written: {said}, then run the same command again; nothing was left "
            "half-written"
        ) from error


def check_writable(target: Path) -> None:
    """Find out, before the work whose results go there, whether a file or folder can take its place.

    A folder is made where the temporary of `target` will be, with the folders that are missing on the way,
    and removed again: permissions do not tell of a file system that can only be read, or of a quota.

    Raises:
        StorageError: naming the place and what the system says.
    """
    target = Path(os.path.abspath(target))
    there = next(place for place in target.parents if os.path.lexists(place))
    first, *rest = target.relative_to(there).parts
    try:
        with leftovers.claimed(there / first, Path.mkdir) as probe:
            try:
                # By the longest name that is given to what is replaced.
                (probe.joinpath(*rest, leftovers.replaced(probe).name)).mkdir(parents=True)
            finally:
                shutil.rmtree(probe, ignore_errors=True)
    except OSError as error:
        raise StorageError(
            f"{target}: cannot be written: {error.strerror or error} ({there}); choose another place "
            "(--output)"
        ) from error


def _refusal(error: Exception) -> str | None:
    """What the disk said, and what to do; None if the error is of another kind."""
    number = error.errno if isinstance(error, OSError) else None
    if match := _IN_TEXT.search(str(error)):
        number = int(match[1])
    if number in _ADVICE:
        return f"{os.strerror(number)}; {_ADVICE[number]}"
    if isinstance(error, RuntimeError) and any(mark in str(error) for mark in _TORCH):
        return f"the disk took only a part; {_ADVICE[errno.ENOSPC]}"
    return None


@contextlib.contextmanager
def atomic_file(path: Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """A stream whose content takes the place of a file when the block ends without an exception.

    The content is flushed to disk before the rename; an interruption leaves the old file. Where a pipe or a
    device is (`/dev/stdout`), it is written to as it is.

    Args:
        path: the file; of a link, what it leads to.
        mode: `w` or `wb`.
        **options: as `open` takes them; text is UTF-8 and its line ends stay as they are.

    Raises:
        StorageError: the disk does not take it.
    """
    if "b" not in mode:
        options = {"encoding": "utf-8", "newline": ""} | options
    with disk_errors(path):
        if os.path.exists(path) and not os.path.isfile(path):
            with open(path, mode, **options) as stream:
                yield stream
            return
        target = Path(os.path.realpath(path))
        leftovers.clean(target)
        with leftovers.claimed(target, lambda place: place.touch(exist_ok=False)) as temporary:
            try:
                with open(temporary, mode, **options) as stream:
                    yield stream
                    stream.flush()
                    os.fsync(stream.fileno())
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
        _sync(target.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old one or the new one, never half of it.

    Raises:
        StorageError: the disk does not take it.
    """
    with atomic_file(path) as stream:
        stream.write(text)


def write_json(path: Path, value: Any) -> None:
    """As `write_text`, a JSON value."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends without an exception.

    Every file is flushed to disk before the rename. An interruption leaves the old folder as it was; if the
    process is killed in the instant between the two renames, the next save or load brings it back
    (`leftovers.restore`).

    Raises:
        StorageError: the disk does not take it.
    """
    # Made absolute, since `.` has neither a name nor a parent that a rename could use.
    target = Path(os.path.abspath(target))
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        leftovers.clean(target)
        with leftovers.claimed(target, Path.mkdir) as temporary:
            try:
                yield temporary
                _flush(temporary)
                _take_place(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)


def _flush(folder: Path) -> None:
    # safetensors writes for the owner alone; these folders are shared as far as the umask says.
    mode = folder.stat().st_mode & 0o666
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            path.chmod(mode)
        _sync(path)


def _take_place(temporary: Path, target: Path) -> None:
    if not os.path.lexists(target):
        temporary.rename(target)
        _sync(target.parent)
        return
    old = leftovers.replaced(temporary)
    target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:
        old.rename(target)
        raise
    _sync(target.parent)
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
