"""The user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$SUBVENE_CACHE`, or `subvene` in the user's cache folder; it need not exist yet."""
    if chosen := os.environ.get("SUBVENE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "subvene"
