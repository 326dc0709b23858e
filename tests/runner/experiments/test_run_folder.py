"""A run's folder: the manifest comes before the ledger, and what any kill leaves is taken up."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path

import pytest

from subvene.runner.experiments.run_folder import check_run_folder, run_folder
from subvene.runner.files.ledger import LedgerError
from subvene.runner.files.storage import StorageError
from subvene.specs import SubveneError

MANIFEST = {"format": 1, "kind": "test"}


def units(output: Path) -> None:
    with run_folder(output, MANIFEST, "spec: 1\n") as ledger:
        for i in range(2):
            ledger.do({"unit": i}, lambda i=i: {"value": i})  # type: ignore[misc]


def killed_before_event(output: Path, number: int) -> bool:
    """Run in a process that SIGKILL ends before its n-th touch of the folder; whether it lived."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fork beside torch's threads: the child runs no tensors
        child = os.fork()
    if child == 0:
        left = [number]

        def count(event: str, arguments: tuple[object, ...]) -> None:
            if event in ("open", "os.mkdir", "os.rename", "os.remove") and str(output) in str(arguments):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            units(output)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_run_killed_before_any_of_its_writes_is_taken_up(tmp_path: Path) -> None:
    for number in range(1, 100):
        output = tmp_path / str(number) / "run"
        output.parent.mkdir()
        lived = killed_before_event(output, number)
        if (output / "units.jsonl").exists():
            assert json.loads((output / "manifest.json").read_text()) == MANIFEST
        check_run_folder(output, "a test")
        units(output)
        there = {".lock", "manifest.json", "experiment.yaml", "units.jsonl"}
        assert {path.name for path in output.iterdir()} == there
        assert len((output / "units.jsonl").read_text().splitlines()) == 2
        if lived:
            break
    assert 8 < number < 99


@pytest.mark.parametrize(
    "left", [(".lock",), (".lock", "units.jsonl"), (".lock", ".manifest.json-0123456789ab")]
)
def test_what_a_first_moment_leaves_is_a_run(tmp_path: Path, left: tuple[str, ...]) -> None:
    """The second as an earlier version left it, whose ledger came first."""
    for name in left:
        (tmp_path / name).touch()
    check_run_folder(tmp_path, "a test")
    units(tmp_path)


@pytest.mark.parametrize("mine", ["thesis.txt", ".hidden", "units.csv"])
def test_anything_else_is_left_alone(tmp_path: Path, mine: str) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / mine).touch()
    with pytest.raises(SubveneError, match="exists and is no run of a test; choose another --output"):
        check_run_folder(tmp_path, "a test")
    (tmp_path / "file").touch()
    with pytest.raises(SubveneError, match="is no run of a test"):
        check_run_folder(tmp_path / "file", "a test")


@pytest.mark.parametrize("place", ["file/run", "x" * 300])
def test_a_place_that_takes_nothing_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=f"{place}.*cannot be written"):
        check_run_folder(tmp_path / place, "a test")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_second_process_changes_nothing_of_the_first(tmp_path: Path) -> None:
    with run_folder(tmp_path, MANIFEST, "spec: 1\n"):
        before = (tmp_path / "manifest.json").read_bytes()
        refused = pytest.raises(LedgerError, match="another process is running this experiment")
        with refused, run_folder(tmp_path, {"format": 1, "kind": "other"}, "spec: 2\n"):
            pass
        assert (tmp_path / "manifest.json").read_bytes() == before
