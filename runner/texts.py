"""Plain texts to measure on: the sample that subvene ships, a file, or a Hub dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from subvene.runner.progress import status
from subvene.specs import SubveneError, TextsSpec
from subvene.specs.regular_file import read_text

SAMPLE = Path(__file__).parent / "evaluations" / "data" / "neutral.txt"
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
    try:
        content = read_text(path)
    except OSError as error:
        raise TextsError(
            f"{path}: cannot be read ({error.strerror}); it is looked for beside the spec"
        ) from error
    except UnicodeDecodeError as error:
        raise TextsError(f"{path}: not UTF-8 text (byte {error.start}: {error.reason})") from error
    match path.suffix.lower():
        case ".txt":
            return _paragraphs(content)
        case ".jsonl":
            return _of_lines(path, content, field)
        case ".json":
            return _of_list(path, content, field)
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


def _of_lines(path: Path, content: str, field: str) -> Iterator[str]:
    # Not splitlines: JSON text may hold U+2028 as it is.
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield _text(_parsed(line, f"{path}:{number}"), f"{path}:{number}", field)


def _of_list(path: Path, content: str, field: str) -> Iterator[str]:
    rows = _parsed(content, str(path))
    if not isinstance(rows, list):
        raise TextsError(f"{path}: expected a list of texts or of objects, found {_short(rows)}")
    for i, row in enumerate(rows):
        yield _text(row, f"{path}: [{i}]", field)


def _parsed(content: str, where: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        line = (
            f" line {error.lineno}," if isinstance(error, json.JSONDecodeError) and error.lineno > 1 else ""
        )
        what = (
            f"{error.msg},{line} column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        )
        raise TextsError(f"{where}: not JSON ({what})") from error


def _text(row: Any, where: str, field: str) -> str:
    """The text of a row: the row itself, or one of its fields."""
    if isinstance(row, dict):
        if field not in row:
            there = ", ".join(sorted(map(str, row))) or "none"
            raise TextsError(f"{where}: no field {field!r}; there is: {there} (say which with `field:`)")
        row, where = row[field], f"{where}: {field}"
    if not isinstance(row, str) or not row.strip():
        raise TextsError(f"{where}: expected non-empty text, found {_short(row)}")
    return row


def _short(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False, default=repr)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"


def _of_dataset(spec: TextsSpec, limit: int | None) -> list[str]:
    import datasets

    name = str(spec.dataset)
    found: list[str] = []
    try:
        with status(f"reading {name}"):
            # Streamed, so that a hundred texts do not fetch a corpus.
            rows = datasets.load_dataset(
                name,
                spec.subset,
                split=spec.split,
                revision=spec.revision,
                streaming=True,
                trust_remote_code=False,
            )
            for row in rows:
                if spec.field in row and isinstance(row[spec.field], str) and not row[spec.field].strip():
                    continue  # corpora of lines have blank ones
                found.append(_text(row, f"dataset {name}, split {spec.split}", spec.field))
                if limit is not None and len(found) >= limit:
                    break
    except (OSError, ValueError, LookupError, datasets.exceptions.DatasetsError) as error:
        said = str(error).strip().partition("\n")[0]
        raise TextsError(
            f"dataset {name!r} (subset {spec.subset or 'none'}, split {spec.split}) cannot be read: {said}; "
            "check its name and that the Hub can be reached, or give a `file:`"
        ) from error
    return found
