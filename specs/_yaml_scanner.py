"""PyYAML's scanner where YAML 1.2 reads a text otherwise than YAML 1.1, which is all that PyYAML follows.

Three things: a `?` or a `:` that no space follows is text, and so is a `?` within a text, in flow collections
too (``{prompt: How was it?, why: a?b}``); U+0085, U+2028 and U+2029 are characters like any other and end no
line. What a plain scalar means is the reader's business.
"""

from __future__ import annotations

from typing import Any

import yaml

# What PyYAML takes for line breaks, and characters for private use that stand in while it scans.
_BREAKS = "\x85\u2028\u2029"
_PRIVATE = range(0xE000, 0xF900)
_ENDS = "\0 \t\r\n"


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


def stand_ins(text: str) -> tuple[str, dict[int, str]]:
    """The text with stand-ins for characters that PyYAML takes for line breaks, and how to put them back."""
    if not any(character in text for character in _BREAKS):
        return text, {}
    free = (chr(code) for code in _PRIVATE if chr(code) not in text)
    there = dict(zip(_BREAKS, free, strict=False))
    return text.translate({ord(old): new for old, new in there.items()}), {
        ord(new): old for old, new in there.items()
    }
