"""A process of its own that begins with what is imported here, to be killed or interrupted.

A fresh one takes seconds to import what every test has imported already; what is killed is the same.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import IO

import torch


class Forked:
    """A copy of this process that does one thing; its methods are those of `subprocess.Popen`.

    Args:
        work: what it does; it ends with the code of a `SystemExit`, 0, or 1 after another exception.

    Attributes:
        output: what it writes on standard output and standard error.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        reading, writing = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            os.close(reading)
            _do(work, writing)
        os.close(writing)
        self.output: IO[str] = os.fdopen(reading)

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def communicate(self) -> tuple[None, str]:
        """What it still wrote, when it has ended."""
        with self.output:
            rest = self.output.read()
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return None, rest

    def send_signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it if it still runs."""
        self.send_signal(signal.SIGKILL)


def _do(work: Callable[[], object], writing: int) -> None:
    """Never returns: what pytest does at the end of a process is the other one's."""
    code = 1
    try:
        for descriptor in (1, 2):
            os.dup2(writing, descriptor)
        sys.stdout, sys.stderr = (os.fdopen(d, "w", buffering=1, closefd=False) for d in (1, 2))
        torch.set_num_threads(1)  # threads of OpenMP do not outlive a fork
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
