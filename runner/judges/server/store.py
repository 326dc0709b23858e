"""Replies on disk, by the digest of their request: one JSON document a line, lines are only ever added.

Each line goes out in one write to a file opened for appending, so processes that share it do not mix their
lines, and a kill or a full disk leaves at most a torn line, which is skipped when read and ended by the next
writer. A line carries a checksum; what does not match it, and what is no reply, is asked for again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from subvene.runner.files.ledger import digest, write_all
from subvene.runner.files.storage import disk_errors
from subvene.runner.judges.server.replies import Reply
from subvene.specs.regular_file import read_bytes


class _Line(TypedDict):
    """A reply as it is kept."""

    key: str
    text: str
    top: Sequence[Sequence[str | float]]
    sha256: NotRequired[str]


class Store:
    """A file of replies; opened for adding as a context manager.

    Args:
        path: the file; its folder is made when it is opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def __enter__(self) -> None:
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def read(self) -> dict[str, Reply]:
        """All replies that can be read; whether one is of use for a request is not asked here."""
        try:
            lines = read_bytes(self._path).split(b"\n")
        except FileNotFoundError:
            return {}
        known: dict[str, Reply] = {}
        for line in lines:
            try:
                record = json.loads(line)
                # Lines of earlier versions have no checksum.
                if record.get("sha256", _checksum(record)) == _checksum(record):
                    known[record["key"]] = _reply(record)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue  # an empty line, or one that a kill tore: its request is simply made again
        return known

    def add(self, key: str, reply: Reply) -> None:
        """Keep a reply.

        Raises:
            StorageError: the disk does not take it.
        """
        if self._descriptor is None:
            raise RuntimeError("the store is not open")
        record: _Line = {"key": key, "text": reply.text, "top": reply.top}
        line = json.dumps({**record, "sha256": _checksum(record)})
        with disk_errors(self._path):
            # A line break on both sides: the first ends a line that a killed process left torn.
            write_all(self._descriptor, f"\n{line}\n".encode())


def _reply(record: _Line) -> Reply:
    top: list[tuple[str, float]] = []
    for token, value in record["top"]:
        if not isinstance(token, str) or not isinstance(value, float):
            raise TypeError("not a reply")
        top.append((token, value))
    if not isinstance(record["text"], str):
        raise TypeError("not a reply")
    return Reply(record["text"], tuple(top))


def _checksum(record: _Line) -> str:
    return digest([record["key"], record["text"], json.dumps(record["top"])])
