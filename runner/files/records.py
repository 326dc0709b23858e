"""Records of a ledger: one JSON document a line, with a format number and a checksum over key and content.

A line that does not match its checksum, or whose key is not that of its unit, is no record: whoever reads it
does the unit again. A last line without an end is what a kill leaves, and is taken away.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeGuard

from pydantic import JsonValue

from subvene.runner.files.json_value import Fields, Json
from subvene.runner.files.storage import atomic_file
from subvene.specs import SubveneError
from subvene.specs.regular_file import read_bytes

FORMAT = 2
"""Of a line. Those of format 1 carried no number and no checksum."""
LEDGER, REJECTED = "units.jsonl", "units.rejected.jsonl"


class LedgerError(SubveneError):
    """The record of a run cannot be read, or somebody else is writing it."""


class LedgerWarning(UserWarning):
    """Records of a run do not hold, and their units are done again."""


def digest(value: Any) -> str:
    """sha256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Record(TypedDict):
    """A unit of work as it is recorded.

    Attributes:
        format: of the line.
        key: the digest of `unit`.
        unit: all that the result depends on.
        seconds: how long it took.
        result: what it gave.
        sha256: of all others.
    """

    format: int
    key: str
    unit: dict[str, JsonValue]
    seconds: float
    result: dict[str, JsonValue]
    sha256: str


def made(key: str, unit: Mapping[str, Json], seconds: float, result: Mapping[str, Json] | Fields) -> Record:
    """A unit as it is recorded: JSON values only, its format, and a checksum over all of it."""
    content = {"format": FORMAT, "key": key, "unit": dict(unit), "seconds": seconds, "result": result}
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise LedgerError(
            f"{unit.get('unit')}: a result is not finite, and nothing was recorded: an edit that is too "
            f"strong for the model's dtype gives NaN; lower the strength or use float32 ({error})"
        ) from error
    record: Record = json.loads(text)
    record["sha256"] = digest(record)
    return record


class Reader:
    """Reads a ledger, and puts what is no record aside, into `units.rejected.jsonl`.

    Args:
        path: of the ledger; need not be there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: dict[str, tuple[bytes, dict[str, JsonValue]]] = {}
        self._disputed: set[str] = set()
        self._rejected: list[bytes] = []
        self._reasons: Counter[str] = Counter()

    def read(self) -> dict[str, dict[str, JsonValue]]:
        """The results of all records that hold, by key.

        Raises:
            LedgerError: a newer subvene wrote it, or it cannot be read.
            StorageError: there are lines to be put aside, and the disk is full.
        """
        try:
            content = read_bytes(self._path)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise LedgerError(f"{self._path}: cannot be read ({error.strerror})") from error
        *lines, torn = content.split(b"\n")
        for line in lines:
            self._take(line)
        if self._rejected:
            self._put_aside()
        elif torn:
            # What a kill cut short is taken away, so that the next line begins on a line of its own.
            os.truncate(self._path, len(content) - len(torn))
        self._tell()
        return {key: result for key, (_, result) in self._kept.items()}

    def _take(self, line: bytes) -> None:
        record = _parsed(line)
        number = record.get("format") if record else None
        if isinstance(number, int) and number > FORMAT:
            raise LedgerError(
                f"{self._path}: was written by a newer subvene (format {number}, this one reads {FORMAT}); "
                "use that one, or choose another --output"
            )
        if record is None or not _holds(record):
            old = record is not None and number is None and {"key", "unit", "result"} <= record.keys()
            self._reject(line, "without" if old else "altered")
            return
        key, result = record["key"], record["result"]
        if key in self._disputed or (key in self._kept and self._kept[key][1] != result):
            # Whole records that say different things: none of them is believed.
            self._disputed.add(key)
            self._reject(line, "altered")
            if key in self._kept:
                self._reject(self._kept.pop(key)[0], "altered")
        else:
            self._kept[key] = line, result

    def _reject(self, line: bytes, reason: str) -> None:
        self._rejected.append(line)
        self._reasons[reason] += 1

    def _put_aside(self) -> None:
        rejected = self._path.with_name(REJECTED)
        before = read_bytes(rejected) if rejected.exists() else b""
        with atomic_file(rejected, "wb") as file:
            file.write(before + b"".join(line + b"\n" for line in self._rejected))
        with atomic_file(self._path, "wb") as file:
            file.write(b"".join(line + b"\n" for line, _ in self._kept.values()))

    def _tell(self) -> None:
        said = {
            "altered": "do not match their checksum (damaged, edited or mixed up)",
            "without": "are of a subvene that wrote no checksums",
        }
        for reason, count in self._reasons.items():
            warnings.warn(
                f"{self._path}: {count} of {len(self._kept) + len(self._rejected)} records {said[reason]}; "
                f"their units are done again, and the lines were moved to {REJECTED}",
                LedgerWarning,
                stacklevel=4,
            )


def _parsed(line: bytes) -> dict[str, JsonValue] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _holds(record: Mapping[str, JsonValue]) -> TypeGuard[Record]:
    """Whether a record is what its key and its checksum say."""
    content = {name: value for name, value in record.items() if name != "sha256"}
    try:
        return (
            content["format"] == FORMAT
            and record["sha256"] == digest(content)
            and content["key"] == digest(content["unit"])
            and isinstance(content["result"], dict)
        )
    except (KeyError, ValueError, RecursionError):
        return False
