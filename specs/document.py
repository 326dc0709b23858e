"""Text into data that knows where it stands: YAML or JSON, bounded, and nothing in it executed.

What the data mean is not known here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from subvene.specs._nodes import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    Complaints,
    Data,
    Document,
    MappingNode,
    Mark,
    Place,
    SequenceNode,
)
from subvene.specs._yaml_reader import YamlReader
from subvene.specs.errors import SpecError
from subvene.specs.regular_file import open_regular

Format = Literal["yaml", "json"]

_SUFFIXES: dict[str, Format] = {".yaml": "yaml", ".yml": "yaml", ".json": "json"}


def parse_document(text: str, file: str = "<string>", format: Format = "yaml") -> Document:
    """Reads a text whose top is a mapping.

    Args:
        text: The text of the file.
        file: What problems call the file.
        format: ``yaml`` or ``json``.

    Raises:
        SpecError: The text is no document of this format, is too large, has a key twice, …
    """
    complaints = Complaints(file)
    # Characters first, since encoding is what costs for a text that is far too long.
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise complaints.fail(None, f"at most {MAX_BYTES} bytes", "more than that")
    text = text.removeprefix("\ufeff")
    if format == "yaml":
        root = YamlReader(text, complaints).read()
    elif format == "json":
        from subvene.specs._json_reader import JsonReader

        root = JsonReader(text, complaints).read()
    else:
        raise ValueError(f"format is yaml or json, not {format!r}")
    if root is None:
        raise complaints.fail(Mark(1, 1), "a mapping", "an empty file")
    if not isinstance(root, MappingNode):
        empty = not isinstance(root, SequenceNode) and root.value is None
        found = "nothing" if empty else "a list" if isinstance(root, SequenceNode) else "a single value"
        raise complaints.fail(root.mark, "a mapping", found)
    if complaints.problems:
        raise SpecError(complaints.problems)
    return Document(file, root)


def read_document(path: str | Path) -> Document:
    """Reads a file; ``.json`` is JSON, ``.yaml`` and ``.yml`` are YAML.

    Raises:
        SpecError: The file cannot be read, is not UTF-8, or is no such document.
    """
    path = Path(path)
    complaints = Complaints(str(path))
    format = _SUFFIXES.get(path.suffix.lower())
    if format is None:
        raise complaints.fail(None, "a file that ends in .yaml, .yml or .json", repr(path.name))
    try:
        with open_regular(path) as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise complaints.fail(None, "a readable file", (error.strerror or str(error)).lower()) from error
    if len(raw) > MAX_BYTES:
        raise complaints.fail(None, f"at most {MAX_BYTES} bytes", "more than that")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8")
        mark = Mark(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
        raise complaints.fail(mark, "UTF-8 text", f"the byte 0x{raw[error.start]:02x}") from None
    return parse_document(text, str(path), format)


__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_NODES",
    "Data",
    "Document",
    "Format",
    "Mark",
    "Place",
    "parse_document",
    "read_document",
]
