"""Executes notebooks/ with nbclient, each from a fresh kernel: `make notebooks` has an environment for it.

`--write` keeps what the cells printed, so that a reader on a code host sees it; without it nothing is kept.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
SECONDS = 900
"""That a cell may take on a machine that others share."""


def run(path: Path, write: bool) -> bool:
    """Executes one notebook; says how long it took, or what failed in which cell."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    began, used = time.time(), os.times()
    try:
        NotebookClient(
            notebook, timeout=SECONDS, resources={"metadata": {"path": str(path.parent)}}
        ).execute()
    except CellExecutionError as error:
        print(f"{path.name}: {error}")
        return False
    cpu = os.times().children_user - used.children_user
    print(f"{path.name}: {time.time() - began:.0f} s, {cpu:.0f} s of CPU")
    if write:
        nbformat.write(_kept(notebook), path)
    return True


def _kept(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what differs from run to run: times, progress, the kernel's version."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [output for output in cell.outputs if not _is_progress(output)]
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = None
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def _is_progress(output: nbformat.NotebookNode) -> bool:
    return output.get("name") == "stderr" or any("widget" in kind for kind in output.get("data", ()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of names; left out: all")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    paths = [p for p in sorted(NOTEBOOKS.glob("*.ipynb")) if p.name.startswith(tuple(given.names) or "")]
    sys.exit(not paths or not all([run(path, given.write) for path in paths]))
