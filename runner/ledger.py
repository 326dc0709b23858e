"""The ledger: what a run has done, one line a unit of work, so that it can be stopped and taken up again.

A unit is addressed by what it depends on. Doing it again with the same identity costs nothing; whatever is
changed in it (a seed, a strength, a question, a version) makes another unit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from subvene.specs import SubveneError
from subvene.specs.regular_file import open_regular


class LedgerError(SubveneError):
    """The record of a run cannot be read, or somebody else is writing it."""


def digest(value: Any) -> str:
    """sha256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def check_run_folder(output: Path, what: str) -> None:
    """Check that a run may write into a folder: nothing is there, or a run that it takes up.

    Args:
        output: the run's folder.
        what: what it would be a run of, in words.

    Raises:
        SubveneError: something else is there.
    """
    if output.exists() and not (output / "manifest.json").is_file() and any(output.iterdir()):
        raise SubveneError(f"{output} exists and is no run of {what}; choose another --output")


class Ledger:
    """An append-only file of finished units, held by one process at a time.

    Use it as a context manager. Every line is on the disk before `do` returns, so that a process that is
    killed loses the unit that it was doing and no other.

    Args:
        folder: where `units.jsonl` is.

    Attributes:
        results: what each unit gave, by its key; units of earlier runs among them.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "units.jsonl"
        self.results: dict[str, dict[str, Any]] = {}
        self._lock = FileLock(folder / ".lock")
        self._stream: Any = None

    def __enter__(self) -> Self:
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise LedgerError(
                f"{self.path.parent}: another process is running this experiment; wait for it, or choose "
                "another --output"
            ) from None
        try:
            whole = self._read()
            self._stream = self.path.open("r+b" if self.path.exists() else "w+b")
            # A line that a kill cut short is taken away, so that the next one begins on a line of its own.
            self._stream.truncate(whole)
            self._stream.seek(whole)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()
        self._lock.release()

    def do(self, identity: Mapping[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The unit's result: from the record if it was done before, otherwise from `work`.

        Args:
            identity: everything that the result depends on, JSON values.
            work: does the unit and returns its result, JSON values.
        """
        key = digest(identity)
        if key not in self.results:
            begun = time.monotonic()
            result = work()
            seconds = round(time.monotonic() - begun, 3)
            record = {"key": key, "unit": dict(identity), "seconds": seconds, "result": result}
            # As a later run will read it, so that the two cannot differ.
            self.results[key] = json.loads(self._append(record))["result"]
        return self.results[key]

    def has(self, identity: Mapping[str, Any]) -> bool:
        """Whether the unit is done."""
        return digest(identity) in self.results

    def _append(self, record: dict[str, Any]) -> str:
        try:
            line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        except ValueError as error:
            what = record["unit"].get("unit")
            raise LedgerError(
                f"{what}: a result is not finite, and nothing was recorded: an edit that is too strong for "
                f"the model's dtype gives NaN; lower the strength or use float32 ({error})"
            ) from error
        self._stream.write(line.encode())
        self._stream.flush()
        os.fsync(self._stream.fileno())
        return line

    def _read(self) -> int:
        """Read what is there; the length in bytes of its whole lines."""
        whole = 0
        with contextlib.suppress(FileNotFoundError), open_regular(self.path) as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                    self.results[record["key"]] = record["result"]
                except (ValueError, KeyError, TypeError) as error:
                    raise LedgerError(
                        f"{self.path}, line {number}: not a unit of work ({error!r}); delete the line to do "
                        "that unit again, or choose another --output"
                    ) from error
                whole += len(line)
        return whole
