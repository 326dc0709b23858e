"""The examples with fewer data, for what they show at once: a fit reads the first rows of each list."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml
from checkout import EXAMPLES


def short_examples(folder: Path, rows: int) -> Path:
    """Copy the experiment files and `share/`, and the first rows of every list of their data.

    Args:
        folder: a folder that is not there yet.
        rows: of each list.

    Returns:
        The folder, as `examples/` is.
    """
    (folder / "data").mkdir(parents=True)
    for path in EXAMPLES.glob("*.yaml"):
        shutil.copy(path, folder)
    shutil.copytree(EXAMPLES / "share", folder / "share")
    for path in (EXAMPLES / "data").glob("*.yaml"):
        data = yaml.safe_load(path.read_text("utf-8"))
        short = {name: value[:rows] for name, value in data.items()}
        (folder / "data" / path.name).write_text(yaml.safe_dump(short, allow_unicode=True), "utf-8")
    return folder
