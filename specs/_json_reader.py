"""Reads JSON into the same tree as YAML.

Not by way of YAML, which refuses tabs and reads escapes differently; not by ``json.loads``, which keeps the
last of two equal keys and no places.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right

from subvene.specs._nodes import (
    MAX_DEPTH,
    MAX_NODES,
    Complaints,
    Entry,
    MappingNode,
    Mark,
    Node,
    Scalar,
    ScalarNode,
    SequenceNode,
)
from subvene.specs.errors import SpecError

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORD = re.compile(r"[A-Za-z]+")
_CONSTANTS: dict[str, Scalar] = {"true": True, "false": False, "null": None}


class JsonReader:
    """Reads one text.

    Raises:
        SpecError: From ``read``: anything that is not one JSON value, with the place.
    """

    def __init__(self, text: str, complaints: Complaints) -> None:
        self.text = text
        self.complaints = complaints
        self.at = 0
        self.count = 0
        self.line_starts = [0, *(match.end() for match in re.finditer(r"\r\n|\n|\r", text))]

    def read(self) -> Node | None:
        """Returns the document's root, None when there is only white space."""
        self._skip()
        if self.at == len(self.text):
            return None
        root = self._value(0)
        self._skip()
        if self.at < len(self.text):
            raise self._error("the end of the file after the first value")
        return root

    def _mark(self, at: int) -> Mark:
        line = bisect_right(self.line_starts, at)
        return Mark(line, at - self.line_starts[line - 1] + 1)

    def _skip(self) -> None:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def _error(self, expected: str) -> SpecError:
        rest = self.text[self.at : self.at + 12].split("\n")[0]
        found = (
            repr(rest)
            if rest
            else "the end of the line"
            if self.at < len(self.text)
            else "the end of the file"
        )
        return self.complaints.fail(self._mark(self.at), expected, found)

    def _take(self, character: str) -> bool:
        self._skip()
        taken = self.text.startswith(character, self.at)
        self.at += taken
        return taken

    def _value(self, depth: int) -> Node:
        self.count += 1
        mark = self._mark(self.at)
        if self.count > MAX_NODES:
            raise self.complaints.fail(mark, f"at most {MAX_NODES} values in a file", "more than that")
        if depth > MAX_DEPTH:
            raise self.complaints.fail(mark, f"at most {MAX_DEPTH} levels of nesting", "more than that")
        if self._take("{"):
            return self._object(mark, depth)
        if self._take("["):
            return self._array(mark, depth)
        return ScalarNode(mark, self._scalar())

    def _scalar(self) -> Scalar:
        if self.text.startswith('"', self.at):
            return self._string()
        if number := _NUMBER.match(self.text, self.at):
            self.at = number.end()
            try:
                return float(number[0]) if number[1] or number[2] else int(number[0])
            except ValueError:
                found = f"one of {len(number[0])} digits"
                raise self.complaints.fail(self._mark(number.start()), "a number", found) from None
        word = _WORD.match(self.text, self.at)
        if word and word[0] in _CONSTANTS:
            self.at = word.end()
            return _CONSTANTS[word[0]]
        raise self._error("a JSON value")

    def _string(self) -> str:
        match = _STRING.match(self.text, self.at)
        if match is None:
            raise self._error("text in double quotes, closed on the same line")
        try:
            text: str = json.loads(match[0])
        except json.JSONDecodeError:
            raise self._error("text with JSON's escapes only") from None
        self.at = match.end()
        return text

    def _array(self, mark: Mark, depth: int) -> SequenceNode:
        sequence = SequenceNode(mark)
        if self._take("]"):
            return sequence
        while True:
            self._skip()
            item = self._value(depth + 1)
            self.complaints.add_item(sequence, item)
            if self._take("]"):
                return sequence
            if not self._take(","):
                raise self._error("`,` or `]`")

    def _object(self, mark: Mark, depth: int) -> MappingNode:
        mapping = MappingNode(mark)
        if self._take("}"):
            return mapping
        while True:
            self._skip()
            key_mark = self._mark(self.at)
            if not self.text.startswith('"', self.at):
                raise self._error("a key in double quotes")
            key = self._string()
            if not self._take(":"):
                raise self._error("`:` after the key")
            self._skip()
            value = self._value(depth + 1)
            self.count += 1
            self.complaints.grow(mapping, ScalarNode(key_mark, key))
            self.complaints.grow(mapping, value)
            self.complaints.add_entry(mapping, Entry(key, key_mark, value))
            if self._take("}"):
                return mapping
            if not self._take(","):
                raise self._error("`,` or `}`")
