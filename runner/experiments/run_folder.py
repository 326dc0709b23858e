"""The folder of a run that can be stopped: whether it is free, and what is written before the first unit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from subvene.runner.files import leftovers
from subvene.runner.files.ledger import LEDGER, LOCK, Ledger
from subvene.runner.files.storage import check_writable, disk_errors, write_json, write_text
from subvene.runner.models.identity import Manifest
from subvene.specs import SubveneError

MANIFEST, SPEC = "manifest.json", "experiment.yaml"


def check_run_folder(output: Path, what: str) -> None:
    """Check that a run may write into a folder: nothing is there, or a run that it takes up.

    A run that was killed in its first moments has no manifest yet, and nothing else but its lock.

    Args:
        output: the run's folder.
        what: what it would be a run of, in words.

    Raises:
        SubveneError: something else is there.
        StorageError: nothing can be written there.
    """
    # Not `Path.exists`, which raises for a name that is too long and for a folder that nobody may look into.
    if os.path.exists(output) and not os.path.isfile(output / MANIFEST):
        _refuse_other(output, what)
    check_writable(output / MANIFEST)


def _refuse_other(output: Path, what: str) -> None:
    if not output.is_dir() or not all(_of_a_run(path.name) for path in output.iterdir()):
        raise SubveneError(f"{output} exists and is no run of {what}; choose another --output")


def _of_a_run(name: str) -> bool:
    return name in (LOCK, LEDGER) or leftovers.is_leftover(name, MANIFEST)


@contextlib.contextmanager
def run_folder(output: Path, manifest: Manifest, spec: str) -> Iterator[Ledger]:
    """A run's folder and its ledger, this process's alone while the block runs.

    The manifest and the spec are on the disk before the ledger is, and what killed runs left is removed.

    Args:
        output: the folder; made if it is not there.
        manifest: what there is to know about where the numbers come from, JSON values.
        spec: the experiment as it is run, YAML.

    Raises:
        LedgerError: another process is running in it, or its ledger cannot be read.
        StorageError: the disk does not take it.
    """

    def begin() -> None:
        leftovers.clean_folder(output)
        write_json(output / MANIFEST, manifest)
        write_text(output / SPEC, spec)

    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    with Ledger(output, begin=begin) as ledger:
        yield ledger
