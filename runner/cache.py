"""The user's cache folder and atomic folders in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
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

    Every file is flushed to disk before the rename. An interruption leaves the old folder as it was, or, for
    the instant between the two renames, beside its place under a name that ends in `.old`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            # mkdtemp and safetensors write for the owner alone; these folders are meant to be shared.
            path.chmod(0o755 if path.is_dir() else 0o644)
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".old", dir=target.parent))
            target.rename(old / target.name)
            try:
                temporary.rename(target)
            except OSError:
                (old / target.name).rename(target)
                raise
            shutil.rmtree(old)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
