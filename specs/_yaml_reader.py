"""Reads YAML into a tree of nodes, from PyYAML's events.

Events instead of PyYAML's own composer, because that one recurses without bound, expands what it is given
and forgets where keys stand. Plain scalars follow YAML 1.2's core schema: ``on`` is text and ``1e-4`` a
number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from subvene.specs._nodes import (
    MAX_DEPTH,
    MAX_NODES,
    Complaints,
    Entry,
    Key,
    MappingNode,
    Mark,
    Node,
    Scalar,
    ScalarNode,
    SequenceNode,
)
from subvene.specs._yaml_scanner import events, stand_ins

_CONSTANTS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_BASES = {"0o": 8, "0x": 16}


def plain_scalar(text: str) -> Scalar:
    """Returns what an unquoted scalar means in YAML 1.2's core schema.

    Raises:
        ValueError: An integer of more digits than Python reads.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if INTEGER.fullmatch(text):
        base = _BASES.get(text[:2])
        return int(text, 10) if base is None else int(text[2:], base)
    if FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


class YamlReader:
    """Reads one text.

    Raises:
        SpecError: From ``read``: anything that is not one plain document, with the place.
    """

    def __init__(self, text: str, complaints: Complaints) -> None:
        self.text, self.replaced = stand_ins(text)
        self.complaints = complaints
        self.anchors: dict[str, Node] = {}
        self.open: set[str] = set()
        self.count = 0

    def read(self) -> Node | None:
        """Returns the document's root, None when there is no document."""
        try:
            return self._document(events(self.text))
        except yaml.reader.ReaderError as error:
            before = self.text[: error.position]
            mark = Mark(before.count("\n") + 1, error.position - (before.rfind("\n") + 1) + 1)
            raise self.complaints.fail(
                mark, "text", f"the control character {_named(error.character)}"
            ) from None
        except yaml.MarkedYAMLError as error:
            at = error.problem_mark or error.context_mark
            place = Mark(at.line + 1, at.column + 1) if at else None
            said = " ".join(part for part in (error.context, error.problem) if part)
            raise self.complaints.fail(place, "YAML", f"a syntax error ({said})") from None

    def _document(self, events: Iterator[yaml.Event]) -> Node | None:
        root: Node | None = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self.complaints.fail(_mark(event), "one document", "a second one")
                if event.version not in (None, (1, 2)):
                    # Its `on` and `12:30` would not be what they are here.
                    found = "version " + ".".join(map(str, event.version))
                    raise self.complaints.fail(_mark(event), "YAML 1.2", found)
                root = self._node(next(events), events, 0)
        return root

    def _node(self, event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> Node:
        self.count += 1
        if self.count > MAX_NODES:
            raise self.complaints.fail(
                _mark(event), f"at most {MAX_NODES} values in a file", "more than that"
            )
        if depth > MAX_DEPTH:
            raise self.complaints.fail(
                _mark(event), f"at most {MAX_DEPTH} levels of nesting", "more than that"
            )
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if not isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            raise TypeError(f"{type(event).__name__} where a value begins")
        if event.tag is not None:
            self.complaints.note(_mark(event), "a value without a tag", f"the tag {event.tag}")
        anchor = event.anchor
        if anchor is not None:
            self.open.add(anchor)
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            node = ScalarNode(_mark(event), self._scalar(event))
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(event, events, depth)
        else:
            node = self._mapping(event, events, depth)
        if anchor is not None:
            self.open.discard(anchor)
            self.anchors[anchor] = node
        return node

    def _alias(self, event: yaml.AliasEvent) -> Node:
        if event.anchor in self.open:
            raise self.complaints.fail(_mark(event), "an anchor outside its own value", f"*{event.anchor}")
        if event.anchor not in self.anchors:
            raise self.complaints.fail(_mark(event), "an anchor that stands above", f"*{event.anchor}")
        return self.anchors[event.anchor]

    def _scalar(self, event: yaml.ScalarEvent) -> Scalar:
        text = str(event.value).translate(self.replaced)
        if event.style:
            return text
        try:
            return plain_scalar(text)
        except ValueError:
            found = f"one of {len(text)} digits"
            raise self.complaints.fail(_mark(event), "a number", found) from None

    def _sequence(self, start: yaml.Event, events: Iterator[yaml.Event], depth: int) -> SequenceNode:
        sequence = SequenceNode(_mark(start))
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            item = self._node(event, events, depth + 1)
            self.complaints.add_item(sequence, item)
        return sequence

    def _mapping(self, start: yaml.Event, events: Iterator[yaml.Event], depth: int) -> MappingNode:
        mapping = MappingNode(_mark(start))
        merged: list[MappingNode] = []
        merge_seen = False
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key_mark = _mark(event)
            merges = isinstance(event, yaml.ScalarEvent) and not event.style and event.value == "<<"
            key = self._node(event, events, depth + 1)
            value = self._node(next(events), events, depth + 1)
            self.complaints.grow(mapping, key)
            self.complaints.grow(mapping, value)
            if merges:
                if merge_seen:
                    self.complaints.note(key_mark, "every key once", "`<<` again: give it a list of mappings")
                merge_seen = True
                merged += self._merged(value, key_mark)
            else:
                self.complaints.add_entry(mapping, Entry(self._key(key, key_mark), key_mark, value))
        for source in merged:
            for text, entry in source.entries.items():
                mapping.entries.setdefault(text, entry)
        return mapping

    def _merged(self, value: Node, mark: Mark) -> list[MappingNode]:
        sources = value.items if isinstance(value, SequenceNode) else [value]
        mappings = [source for source in sources if isinstance(source, MappingNode)]
        if len(mappings) != len(sources):
            self.complaints.note(mark, "a mapping or a list of mappings to merge", "something else")
        return mappings

    def _key(self, node: Node, mark: Mark) -> Key:
        value = node.value if isinstance(node, ScalarNode) else None
        if isinstance(value, str) or type(value) is int:
            return value
        found = repr(value) if isinstance(node, ScalarNode) else "a list or mapping"
        self.complaints.note(mark, "a key that is text or an integer", found)
        return found


def _named(character: int | str | bytes) -> str:
    return f"U+{character if isinstance(character, int) else ord(character):04X}"


def _mark(event: yaml.Event) -> Mark:
    at = event.start_mark
    return Mark(at.line + 1, at.column + 1) if at else Mark(1, 1)
