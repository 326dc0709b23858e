"""Text that a terminal shows and does not obey: names, paths and answers come from others."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import logging

# What moves the cursor, colours, sets titles or the clipboard, and in which direction the rest is read; and
# what no terminal's encoding has (bytes of a file's name that are not UTF-8). Tab and line end are text.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_SHOWN_AS = "\N{REPLACEMENT CHARACTER}"


def on_screen(text: str) -> str:
    """The text, with � for every character that a terminal would act on."""
    return _UNSAFE.sub(_SHOWN_AS, text)


def on_line(text: str) -> str:
    """As `on_screen`, in one line: a name may hold a line end, and must not begin a line of its own."""
    return on_screen(text).replace("\n", _SHOWN_AS)


def in_json(document: str) -> str:
    """A JSON document in which those characters are escapes of JSON: it says the same."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


@contextlib.contextmanager
def printable_logs() -> Iterator[None]:
    """While the block runs, what libraries log is `on_screen` (and without colours): they log names, too."""
    import logging  # costs more than the rest of `--help` that is ours

    before = logging.getLogRecordFactory()

    def make(*args: Any, **more: Any) -> logging.LogRecord:
        record = before(*args, **more)
        # A message that does not fit its arguments is the handler's to complain of.
        with contextlib.suppress(TypeError, ValueError):
            message = record.getMessage()
            if _UNSAFE.search(message):
                record.msg, record.args = on_screen(_STYLE.sub("", message)), ()
        return record

    logging.setLogRecordFactory(make)
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)
