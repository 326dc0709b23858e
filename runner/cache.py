"""The user's cache folder and atomic folders in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


def cache_folder() -> Path:
    """`$SUBVENE_CACHE`, or `subvene` in the user's cache folder; it need not exist yet."""
    if chosen := os.environ.get("SUBVENE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "subvene"


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends without an exception.

    Every file is flushed to disk before the rename. An interruption leaves the old folder as it was, or, if
    the process is killed in the instant between the two renames, beside its place under a name that ends in
    `.old`.
    """
    # Made absolute, since `.` has neither a name nor a parent that a rename could use.
    target = Path(os.path.abspath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}-{uuid.uuid4().hex[:12]}")
    temporary.mkdir()
    try:
        yield temporary
        # safetensors writes for the owner alone; these folders are shared as far as the umask says.
        mode = temporary.stat().st_mode & 0o666
        for path in [*temporary.rglob("*"), temporary]:
            if path.is_file():
                path.chmod(mode)
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        if os.path.lexists(target):
            old = temporary.with_name(f"{temporary.name}.old")
            target.rename(old)
            try:
                temporary.rename(target)
            except BaseException:
                old.rename(target)
                raise
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.unlink()
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
