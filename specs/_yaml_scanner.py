"""PyYAML's scanner where YAML 1.2 reads a text otherwise than YAML 1.1, which is all that PyYAML follows.

Three things: a `?` or a `:` that no space follows is text, and so is a `?` within a text, in flow collections
too (``{prompt: How was it?, why: a?b}``); U+0085, U+2028 and U+2029 are characters like any other and end no
line. What a plain scalar means is the reader's business. Where a text has none of this, libyaml reads it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import yaml

# What PyYAML takes for line breaks, and characters for private use that stand in while it scans.
_BREAKS = "\x85\u2028\u2029"
_PRIVATE = range(0xE000, 0xF900)
_ENDS = "\0 \t\r\n"
_LIBYAML: type[yaml.CSafeLoader] | None = getattr(yaml, "CSafeLoader", None)
"""libyaml's parser, ten times as fast; PyYAML may have been built without it."""
_OTHERWISE_IN_C = re.compile(
    r"[\t\r\x85\u2028\u2029\ufeff\ud800-\udfff]"  # other ends of lines, tabs, what is no UTF-8
    r"|(?<!\w)[?!]|(?m:^)%"  # keys and text that begin with `?`, tags, directives
    r"|[\[{,]\s*:|:[\[{]|:\s*[\]},]|[^\n]\Z"  # places of empty values
)
"""Where libyaml may read a text otherwise than `Loader`."""


class Loader(yaml.SafeLoader):
    """A safe loader whose events are those of YAML 1.2."""

    def check_key(self) -> bool:
        """Whether `?` begins a key: only before a space, in flow collections too."""
        return bool(self.peek(1) in _ENDS)

    def check_plain(self) -> bool:
        """Whether a plain scalar begins here."""
        if self.flow_level and self.peek() in "?:":
            return bool(self.peek(1) not in _ENDS + ",[]{}")
        return bool(super().check_plain())

    def check_value(self) -> bool:
        """Whether `:` begins a value: before a space or, in a flow collection, right behind a quoted key."""
        if not self.flow_level or self.peek(1) in _ENDS + ",[]{}":
            return bool(super().check_value())
        # The key ends right here, and was no plain scalar: those take the colon in.
        return self.index > 0 and self.buffer[self.pointer - 1] in "\"']}"

    def scan_plain(self) -> Any:
        """A plain scalar; `?` is an ordinary character of it."""
        if not self.flow_level:
            return super().scan_plain()
        peek = self.peek
        # PyYAML's own loop looks at every character through `peek`, and copies them from the buffer itself.
        self.__dict__["peek"] = lambda index=0: "x" if (ch := peek(index)) == "?" else ch
        try:
            return super().scan_plain()
        finally:
            del self.__dict__["peek"]


def events(text: str) -> Iterator[yaml.Event]:
    """The events of a text, by libyaml if it is there and the text has nothing that it reads otherwise.

    Raises:
        yaml.YAMLError: In the words of PyYAML's own parser, which is asked whatever libyaml refuses.
    """
    if _LIBYAML is None or _OTHERWISE_IN_C.search(text):
        return yaml.parse(text, Loader=Loader)
    return _by_libyaml(text, _LIBYAML)


def _by_libyaml(text: str, libyaml: type[yaml.CSafeLoader]) -> Iterator[yaml.Event]:
    passed = 0
    try:
        for event in yaml.parse(text, Loader=libyaml):
            yield event
            passed += 1
    except yaml.YAMLError:
        yield from itertools.islice(yaml.parse(text, Loader=Loader), passed, None)


def stand_ins(text: str) -> tuple[str, dict[int, str]]:
    """The text with stand-ins for characters that PyYAML takes for line breaks, and how to put them back."""
    if not any(character in text for character in _BREAKS):
        return text, {}
    free = (chr(code) for code in _PRIVATE if chr(code) not in text)
    there = dict(zip(_BREAKS, free, strict=False))
    return text.translate({ord(old): new for old, new in there.items()}), {
        ord(new): old for old, new in there.items()
    }
