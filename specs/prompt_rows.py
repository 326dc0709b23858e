"""Lists of prompts as people have them: a prompt a line, or rows with a column."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from subvene.specs.columns import KNOWN, Meaning, asked, missing, take, text_of
from subvene.specs.rows import Row, RowsError, file_rows, file_text

_SAYING: dict[Meaning, str] = dict.fromkeys(KNOWN.values(), "`column: NAME`")


def file_prompts(path: Path, column: str | None = None, limit: int | None = None) -> tuple[str, ...]:
    """Reads the prompts of a file.

    Args:
        path: Ends in .txt (a prompt a line, empty lines left out), .jsonl, .json or .csv.
        column: Of rows, the column that is meant; None: the one that has one of the usual names.
        limit: How many of the first ones are wanted; None: all.

    Raises:
        RowsError: The file cannot be read, a row has no prompt, or there is none at all.
    """
    if path.suffix.lower() == ".txt":
        if column is not None:
            raise RowsError(f"{path}: `column` is of rows, and a .txt file has a prompt a line")
        # Not splitlines: a prompt may hold U+2028 as it is.
        prompts = (line.rstrip("\r") for line in file_text(path).split("\n") if line.strip())
    else:
        prompts = (_prompt(row, column) for row in file_rows(path))
    found = tuple(islice(prompts, limit))
    if not found:
        raise RowsError(f"{path}: holds no prompt")
    return found


def _prompt(placed: Row, column: str | None) -> str:
    where, row = placed
    if column is None and isinstance(row, str):
        return text_of(row, where)
    if column is not None and isinstance(row, Mapping) and column in row:
        # Who says which column says that no other is meant.
        return text_of(row[column], f"{where}: {column}")
    taken = take(row, where, {"prompt", "input"}, chosen={"prompt": column}, saying=_SAYING)
    if "prompt" not in taken:
        expected = "a column `prompt` (another name is said with `column: NAME`)"
        raise missing(row, where, expected)
    turns = asked(taken, where)
    if len(turns) != 1:
        raise RowsError(f"{where}: {taken.columns['prompt']}: expected one user's turn, found a conversation")
    return text_of(turns[0]["content"], where)
