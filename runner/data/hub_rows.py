"""Rows of a data set of the Hugging Face Hub, streamed."""

from __future__ import annotations

from collections.abc import Iterator

from subvene.runner.files.progress import status
from subvene.specs.rows import Fail, Row, RowsError


def hub_rows(
    name: str,
    *,
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
    fail: Fail = RowsError,
) -> Iterator[Row]:
    """The rows of a split, each with where it stands; no more is fetched than is taken.

    Raises:
        RowsError: or what `fail` makes: it cannot be read.
    """
    import datasets

    try:
        with status(f"reading {name}"):
            # Streamed, so that a hundred rows do not fetch a corpus.
            rows = datasets.load_dataset(
                name, subset, split=split, revision=revision, streaming=True, trust_remote_code=False
            )
            for i, row in enumerate(rows):
                yield f"dataset {name}, split {split}, row {i}", row
    # Its own errors, those of the network, and ValueError for a name or a configuration that is not there.
    except (OSError, ValueError, LookupError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        said = str(error).strip().partition("\n")[0]
        raise fail(
            f"dataset {name!r} (subset {subset or 'none'}, split {split}) cannot be read: {said}; check its "
            "name and that the Hub can be reached, or give a file"
        ) from error
