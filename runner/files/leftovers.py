"""What a killed writer leaves beside its target: told from a living one's, restored or removed.

A writer works at `.NAME-HEX` beside its target NAME, and holds a lock on it while it does; the system gives
the lock back when the process ends, however it ends. What is not locked is nobody's. A folder that is
replaced waits at `.NAME-HEX.old` while the new one takes its place.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

_OLD = ".old"
_LEFTOVER = re.compile(r"\.(?P<name>.+)-[0-9a-f]{12}(?P<old>\.old)?", re.DOTALL)
# A baked checkpoint that is being measured (`comparison.arms`) is a scratch folder of a run.
_SCRATCH = re.compile(r"\.baked-\w+")


@contextlib.contextmanager
def claimed(target: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A temporary file or folder beside a target, locked while the block runs.

    Args:
        target: what it will take the place of.
        make: makes it.
    """
    while True:
        temporary = target.with_name(f".{target.name}-{uuid.uuid4().hex[:12]}")
        make(temporary)
        # Between the two a cleaner may have taken it for a leftover: then it is made once more.
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(temporary, os.O_RDONLY)
            _lock(descriptor, wait=True)
            if _is(descriptor, temporary):
                break
            os.close(descriptor)
    try:
        yield temporary
    finally:
        os.close(descriptor)


def replaced(temporary: Path) -> Path:
    """Where the target waits that a temporary takes the place of."""
    return temporary.with_name(temporary.name + _OLD)


def restore(target: Path) -> None:
    """Bring a folder back that a save was replacing when it was killed between its two renames.

    Nothing happens where the target is there, or where there is nothing to bring back.
    """
    target = Path(os.path.abspath(target))
    if os.path.lexists(target):
        return
    waiting = [path for path in _beside(target) if path.name.endswith(_OLD)]
    if not waiting:
        return
    newest = max(waiting, key=lambda path: path.lstat().st_ctime_ns)
    # A save that is alive ends its second rename first.
    with _after(newest.with_name(newest.name.removesuffix(_OLD))):
        if not os.path.lexists(target):
            with contextlib.suppress(FileNotFoundError):
                newest.rename(target)


def clean(target: Path) -> None:
    """Restore a target, and remove what killed writers left beside it."""
    restore(target)
    for path in _beside(target):
        _remove_if_left(path)


def clean_folder(folder: Path) -> None:
    """As `clean`, for everything in a folder and below it; its owner must be the only one to write there."""
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            place = Path(parent, name)
            match = _LEFTOVER.fullmatch(name)
            if match and match["old"]:
                restore(Path(parent, match["name"]))
            if match or _SCRATCH.fullmatch(name):
                _remove_if_left(place)
        folders[:] = [name for name in folders if Path(parent, name).is_dir()]


def is_leftover(name: str, of: str) -> bool:
    """Whether a file's name is that of a temporary of a target called `of`."""
    match = _LEFTOVER.fullmatch(name)
    return match is not None and match["name"] == of


def _beside(target: Path) -> list[Path]:
    try:
        names = os.listdir(target.parent)
    except OSError:
        return []  # no such folder, or one that nobody may look into: there is nothing to restore
    return [target.with_name(name) for name in names if is_leftover(name, target.name)]


def _remove_if_left(path: Path) -> None:
    """Remove a temporary that no process holds, or an old folder whose replacement took its place."""
    if path.name.endswith(_OLD):
        target = path.with_name(_named(path))
        if os.path.lexists(path.with_name(path.name.removesuffix(_OLD))) or not os.path.lexists(target):
            return  # a save is between its renames, or was killed there and is to be restored
        _remove(path)
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return  # gone already, or a link, which no writer makes
    try:
        if _lock(descriptor, wait=False) and _is(descriptor, path):
            _remove(path)
            old = replaced(path)
            if os.path.lexists(old):
                _remove_if_left(old)
    finally:
        os.close(descriptor)


def _named(path: Path) -> str:
    match = _LEFTOVER.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is no leftover")
    return match["name"]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _after(path: Path) -> Iterator[None]:
    """Runs the block when nobody holds a temporary any more; at once where it is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        yield
        return
    try:
        _lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Lock what is open; False where somebody else holds it, or where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False
