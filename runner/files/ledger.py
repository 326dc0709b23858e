"""The ledger: what a run has done, one line a unit of work, so that it can be stopped and taken up again.

A unit is addressed by what it depends on. Doing it again with the same identity costs nothing; whatever is
changed in it (a seed, a strength, a question, a version) makes another unit. What a line holds, and when it
is believed, is the business of `records`.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar, cast

from filelock import FileLock, Timeout
from pydantic import JsonValue

from subvene.runner.files.json_value import Fields, Json
from subvene.runner.files.records import LEDGER, LedgerError, LedgerWarning, Reader, Record, digest, made
from subvene.runner.files.storage import disk_errors

__all__ = [
    "LEDGER",
    "LOCK",
    "MISSING",
    "Ledger",
    "LedgerError",
    "LedgerWarning",
    "Result",
    "Waiting",
    "digest",
]

Result = TypeVar("Result", bound="Mapping[str, Json] | Fields")
"""What a unit gives: a TypedDict, or any JSON object."""
_One = TypeVar("_One")
Before = Callable[[str, Mapping[str, Json]], None]
"""Asked, with key and identity, before a unit is done in this process; raises `Waiting` to leave it."""

LOCK = ".lock"
MISSING = "missing"
"""The field of a result that says how many verdicts are missing in it; above 0 the unit is not finished."""


class Waiting(Exception):
    """What is asked for needs a unit of work that another process has still to do."""


class Ledger:
    """An append-only file of finished units, held by one process at a time.

    Use it as a context manager. Every line is on the disk before `do` returns, so that a process that is
    killed loses the unit that it was doing and no other.

    Args:
        folder: where `units.jsonl` is.
        begin: called when the folder is this process's alone, before anything of the ledger is there.

    Attributes:
        results: what each unit gave, by its key; units of earlier runs among them.
        unfinished: what units gave in this run that lack verdicts; another run does them again.
    """

    def __init__(self, folder: Path, *, begin: Callable[[], None] | None = None) -> None:
        self.path = folder / LEDGER
        self.results: dict[str, dict[str, JsonValue]] = {}
        self.unfinished: dict[str, dict[str, JsonValue]] = {}
        self._begin = begin
        self._before: Before | None = None
        self._lock = FileLock(folder / LOCK)
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        try:
            with disk_errors(self.path.parent):
                self._lock.acquire(blocking=False)
        except Timeout:
            raise LedgerError(
                f"{self.path.parent}: another process is running this experiment; wait for it, or choose "
                "another --output"
            ) from None
        try:
            if self._begin is not None:
                self._begin()
            self.results = Reader(self.path).read()
            with disk_errors(self.path):
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._lock.release()

    def do(self, identity: Mapping[str, Json], work: Callable[[], Result]) -> Result:
        """The unit's result: from the record if it was done before, otherwise from `work`.

        A result that says that verdicts are missing (`missing` above 0) is given back, stands for its unit
        while this run lasts, and is not recorded: the next run does the unit again.

        Args:
            identity: everything that the result depends on, JSON values.
            work: does the unit and returns its result, JSON values.

        Raises:
            LedgerError: the result is not finite.
            StorageError: the disk does not take the record.
            Waiting: another process does it (`leaving`).
        """
        key = digest(identity)
        for known in (self.results, self.unfinished):
            if key in known:
                return cast("Result", known[key])
        if self._before is not None:
            self._before(key, identity)
        begun = time.monotonic()
        result = work()
        seconds = round(time.monotonic() - begun, 3)
        record = made(key, identity, seconds, result)
        self.take(record)
        # As a later run will read it, so that the two cannot differ.
        return cast("Result", record["result"])

    def do_together(
        self, identities: Sequence[Mapping[str, Json]], work: Callable[[list[int]], Sequence[Result]]
    ) -> list[int]:
        """Do units whose work is done in one piece, and record all of them or, if it is killed, none.

        Args:
            identities: of the units, as for `do`.
            work: does those of them whose indices it is given, which are not done.

        Returns:
            The indices of the units that were done now.

        Raises:
            LedgerError: a result is not finite.
            StorageError: the disk does not take the records.
            Waiting: another process does one of them (`leaving`).
        """
        keys = [digest(identity) for identity in identities]
        # A unit that stands there twice is done once.
        missing = [i for i, key in enumerate(keys) if key not in self.results and key not in keys[:i]]
        if not missing:
            return []
        for i in missing:
            if self._before is not None:
                self._before(keys[i], identities[i])
        begun = time.monotonic()
        results = work(missing)
        seconds = round((time.monotonic() - begun) / len(missing), 3)
        records = [
            made(keys[i], identities[i], seconds, result) for i, result in zip(missing, results, strict=True)
        ]
        self._append(*records)
        self.results |= {record["key"]: record["result"] for record in records}
        return missing

    def take(self, record: Record) -> None:
        """Record a unit that is done, here or by another process.

        Args:
            record: as `records.made` gives it.

        Raises:
            StorageError: the disk does not take the record.
        """
        key, result = record["key"], record["result"]
        if digest(record["unit"]) != key:
            raise TypeError(f"{record['unit'].get('unit')}: the names in an identity must be texts")
        if result.get(MISSING):
            self.unfinished[key] = result
        else:
            self._append(record)
            self.results[key] = result

    def each(self, works: Iterable[Callable[[], _One]]) -> list[_One]:
        """What pieces of work give that do not need one another, in their order.

        Where one waits for a unit that another process does, the others are begun all the same, so that all
        units that can be done are known.

        Raises:
            Waiting: at least one of them waits.
        """
        given: list[_One] = []
        waiting: Waiting | None = None
        for work in works:
            try:
                given.append(work())
            except Waiting as error:
                waiting = error
        if waiting is not None:
            raise waiting
        return given

    @contextlib.contextmanager
    def leaving(self, before: Before) -> Iterator[None]:
        """While the block runs, let `before` say of every unit that is not done whether it is done here."""
        self._before = before
        try:
            yield
        finally:
            self._before = None

    def has(self, identity: Mapping[str, Json]) -> bool:
        """Whether the unit is done."""
        return digest(identity) in self.results

    def recorded(self, identity: Mapping[str, Json], kind: type[Result]) -> Result | None:
        """What a unit gave, without doing it; None if it is not done.

        Args:
            identity: as for `do`.
            kind: the type of what its work gives.
        """
        return cast("Result | None", self.results.get(digest(identity)))

    def forget(self, identity: Mapping[str, Json]) -> None:
        """Take a unit for not done, because what it left beside the ledger is gone or altered."""
        self.results.pop(digest(identity), None)

    def _append(self, *records: Record) -> None:
        if self._descriptor is None:
            raise RuntimeError("the ledger is not open")
        texts = [json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records]
        lines = "".join(texts).encode()
        before = os.fstat(self._descriptor).st_size
        with disk_errors(self.path):
            try:
                write_all(self._descriptor, lines)
                os.fsync(self._descriptor)
            except BaseException:
                # A line that only a part of was taken must not stand before the next one.
                os.ftruncate(self._descriptor, before)
                raise


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of it: a disk that is nearly full takes a part and refuses the rest."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
