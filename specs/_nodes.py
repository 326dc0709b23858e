"""A document as a tree whose every value and key knows where it stands.

Both readers build this tree; it knows neither YAML nor JSON nor what the values mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from subvene.specs.errors import Problem, SpecError

# An order of magnitude beyond any real file (the largest hold contrast pairs), small enough to read at once.
MAX_BYTES = 8 * 2**20
MAX_NODES = 200_000
MAX_DEPTH = 48
# Beyond this many, numbers are data, which belong in a tensor file; PyYAML takes seconds to read them.
MAX_NUMBERS = 10_000
# Beyond this many a file is not a spec with mistakes but something else.
MAX_PROBLEMS = 100

Scalar = str | int | float | bool | None
Key = str | int
Data = Scalar | list["Data"] | dict[Key, "Data"]


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a text, both numbers 1-based."""

    line: int
    column: int


@dataclass(slots=True)
class ScalarNode:
    """A single value."""

    mark: Mark
    value: Scalar
    size: int = 1
    height: int = 0


@dataclass(slots=True)
class SequenceNode:
    """A list; ``size`` and ``height`` count what aliases stand for, as often as they stand for it."""

    mark: Mark
    items: list[Node] = field(default_factory=list)
    numbers: int = 0
    size: int = 1
    height: int = 0


@dataclass(slots=True)
class Entry:
    """A value of a mapping, with the place of its key."""

    key: Key
    mark: Mark
    node: Node


@dataclass(slots=True)
class MappingNode:
    """A mapping; its entries are found by the text of the key, since JSON knows only text."""

    mark: Mark
    entries: dict[str, Entry] = field(default_factory=dict)
    size: int = 1
    height: int = 0


Node = ScalarNode | SequenceNode | MappingNode


class Complaints:
    """Gathers a reader's problems with one file, and raises them."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def note(self, mark: Mark | None, expected: str, found: str) -> None:
        """Keeps a problem after which reading can go on."""
        line, column = (mark.line, mark.column) if mark else (None, None)
        self.problems.append(Problem(self.file, line, column, "", expected, found))
        if len(self.problems) >= MAX_PROBLEMS:
            raise SpecError(self.problems)

    def fail(self, mark: Mark | None, expected: str, found: str) -> SpecError:
        """Returns the error to raise for a problem after which reading cannot go on."""
        self.note(mark, expected, found)
        return SpecError(self.problems)

    def add_entry(self, mapping: MappingNode, entry: Entry) -> None:
        """Puts an entry into a mapping, unless its key stands there already."""
        text = str(entry.key)
        if text in mapping.entries:
            first = mapping.entries[text].mark
            self.note(entry.mark, "every key once", f"`{text}` again (first in line {first.line})")
            return
        mapping.entries[text] = entry

    def add_item(self, sequence: SequenceNode, item: Node) -> None:
        """Puts an item into a list."""
        self.grow(sequence, item)
        sequence.items.append(item)
        if isinstance(item, ScalarNode) and isinstance(item.value, int | float):
            sequence.numbers += 1
            if sequence.numbers > MAX_NUMBERS:
                expected = f"at most {MAX_NUMBERS} numbers in a list (more of them belong in a tensor file)"
                raise self.fail(sequence.mark, expected, "more than that")

    def grow(self, parent: SequenceNode | MappingNode, child: Node) -> None:
        """Counts a child in, before anything is expanded, so that an alias bomb costs nothing."""
        parent.size += child.size
        parent.height = max(parent.height, child.height + 1)
        if parent.size > MAX_NODES:
            raise self.fail(
                parent.mark, f"at most {MAX_NODES} values in a file, aliases written out", "more than that"
            )
        if parent.height > MAX_DEPTH:
            raise self.fail(parent.mark, f"at most {MAX_DEPTH} levels of nesting", "more than that")


def plain(node: Node) -> Data:
    """Returns the value of a node as plain Python data."""
    if isinstance(node, ScalarNode):
        return node.value
    if isinstance(node, SequenceNode):
        return [plain(item) for item in node.items]
    return {entry.key: plain(entry.node) for entry in node.entries.values()}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads.

    Attributes:
        path: The path as far as it could be followed, written ``interventions[1].layer``.
        value: Where the value stands, or the innermost thing around it that is there.
        key: Where the last key stands, None for a list's item and for what is missing.
    """

    path: str
    value: Mark
    key: Mark | None


@dataclass(frozen=True, slots=True)
class Document:
    """A document that has been read."""

    file: str
    root: MappingNode

    @property
    def data(self) -> dict[Key, Data]:
        """The document as plain Python data, aliases written out and merged."""
        return {entry.key: plain(entry.node) for entry in self.root.entries.values()}

    def locate(self, path: Sequence[str | int]) -> Place:
        """Follows a path of keys and indices as far as the document goes."""
        node: Node | None = self.root
        value, key, text = self.root.mark, None, ""
        for part in path:
            key = None
            if isinstance(node, SequenceNode) and isinstance(part, int):
                text += f"[{part}]"
                node = node.items[part] if 0 <= part < len(node.items) else None
            else:
                text += f".{part}" if text else str(part)
                entry = node.entries.get(str(part)) if isinstance(node, MappingNode) else None
                node = entry.node if entry else None
                key = entry.mark if entry else None
            if node is not None:
                value = node.mark
        return Place(text, value, key)
