"""Plain texts to measure on: the sample that subvene ships, a file, or a Hub dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from subvene.runner.data.hub_rows import hub_rows
from subvene.specs import SubveneError, TextsSpec
from subvene.specs.rows import file_rows, file_text, short

SAMPLE = Path(__file__).parent / "neutral.txt"
"""A hundred short paragraphs of subvene's own: facts, news, recipes, instructions, dialogue, stories."""


class TextsError(SubveneError):
    """Texts cannot be read; the message names the file and line, or the dataset, and the field."""


def read_texts(spec: TextsSpec, folder: Path, limit: int | None = None) -> list[str]:
    """The first `limit` texts (all if None), in the order in which they stand.

    Args:
        spec: where they are.
        folder: where a relative file is looked for.
        limit: at most so many.

    Raises:
        TextsError: there is no such file or dataset, it is not what its name says, or a text is empty.
    """
    if spec.dataset is not None:
        texts = _of_dataset(spec, limit)
    else:
        path = SAMPLE if spec.file is None else folder / Path(spec.file).expanduser()
        texts = list(islice(_of_file(path, spec.field), limit))
    if not texts:
        raise TextsError(f"{spec.dataset or spec.file}: holds no text")
    return texts


def texts_sha256(texts: Sequence[str]) -> str:
    """A hash of what the texts say, and of their order."""
    return hashlib.sha256(json.dumps(list(texts), ensure_ascii=False).encode()).hexdigest()


def _of_file(path: Path, field: str) -> Iterator[str]:
    hint = "; it is looked for beside the spec"
    match path.suffix.lower():
        case ".txt":
            return _paragraphs(file_text(path, TextsError, hint=hint))
        case ".jsonl" | ".json":
            rows = file_rows(path, TextsError, hint=hint)
            return (_text(row, where, field) for where, row in rows)
    raise TextsError(f"{path}: expected a file that ends in .txt, .jsonl or .json")


def _paragraphs(content: str) -> Iterator[str]:
    """What stands between blank lines."""
    lines: list[str] = []
    for line in [*content.splitlines(), ""]:
        if line.strip():
            lines.append(line.rstrip())
        elif lines:
            yield "\n".join(lines)
            lines = []


def _text(row: Any, where: str, field: str) -> str:
    """The text of a row: the row itself, or one of its fields."""
    if isinstance(row, dict):
        if field not in row:
            there = ", ".join(sorted(map(str, row))) or "none"
            raise TextsError(f"{where}: no field {field!r}; there is: {there} (say which with `field:`)")
        row, where = row[field], f"{where}: {field}"
    if not isinstance(row, str) or not row.strip():
        raise TextsError(f"{where}: expected non-empty text, found {short(row)}")
    return row


def _of_dataset(spec: TextsSpec, limit: int | None) -> list[str]:
    rows = hub_rows(
        str(spec.dataset), subset=spec.subset, split=spec.split, revision=spec.revision, fail=TextsError
    )
    texts = (_text(row, where, spec.field) for where, row in rows if not _is_blank(row, spec.field))
    return list(islice(texts, limit))


def _is_blank(row: Any, field: str) -> bool:
    """Corpora of lines have blank ones."""
    return field in row and isinstance(row[field], str) and not row[field].strip()
