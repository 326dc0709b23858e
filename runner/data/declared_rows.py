"""The rows that a spec names: of a file beside it, or of a data set of the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from subvene.runner.data.hub_rows import hub_rows
from subvene.specs.row_source import RowSource
from subvene.specs.rows import Fail, Row, file_rows


def declared_rows(spec: RowSource, folder: Path, fail: Fail) -> Iterator[Row]:
    """The rows, each with where it stands.

    Args:
        spec: where they are.
        folder: what a relative file is looked for in.
        fail: makes the error of what cannot be read.
    """
    if spec.dataset is not None:
        return hub_rows(spec.dataset, subset=spec.subset, split=spec.split, revision=spec.revision, fail=fail)
    path = folder / Path(spec.file or "").expanduser()
    return file_rows(path, fail, hint="; it is looked for beside the spec")
