"""Opening a file that somebody else may have made, or may be changing: a regular one, and that very one."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path


def open_regular(path: Path, *, follow: bool = True) -> io.BufferedReader:
    """Open a regular file for reading, unbuffered by what its name may lead to a moment later.

    Args:
        path: the file.
        follow: whether its last part may be a link; False where links have been judged already, so that one
            that has taken the file's place since is refused.

    Raises:
        OSError: no such file, a link that is not followed, or a pipe, device or folder.
    """
    # Without blocking: a pipe of that name would wait for a writer. Windows has neither flag, nor such pipes.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if not follow:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path) -> bytes:
    """What a regular file holds.

    Raises:
        OSError: As of `open_regular`.
    """
    with open_regular(path) as stream:
        return stream.read()


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a regular file, every line end read as a newline.

    Raises:
        OSError: As of `open_regular`.
        UnicodeDecodeError: It is not text in this encoding.
    """
    with io.TextIOWrapper(open_regular(path), encoding=encoding) as stream:
        return stream.read()
