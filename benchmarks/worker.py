"""A rival in an environment of its own: it is told its job once, and then does it whenever it is asked.

A benchmark starts it with `worker`; the rival's script serves with `serve`, and imports nothing of subvene.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def worker(python: Path, script: str, job: dict[str, Any]) -> Iterator[Callable[[], Any]]:
    """A process of another environment; calling what this gives does the job once and returns what it says.

    Args:
        python: that environment's interpreter.
        script: beside this file.
        job: JSON values.

    Raises:
        SystemExit: that environment is not there, or its process ended.
    """
    if not python.is_file():
        raise SystemExit(f"no {python}: make bench-peers makes it")
    command = [str(python), str(Path(__file__).parent / script), "--serve"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(line: str) -> Any:
        if process.stdin is None or process.stdout is None:
            raise SystemExit(f"{script}: the process has no pipes")
        process.stdin.write(line + "\n")
        process.stdin.flush()
        if not (answer := process.stdout.readline()):
            raise SystemExit(f"{script} ended with {process.wait()}; its messages are above")
        return json.loads(answer)

    try:
        about = ask(json.dumps(job))
        yield lambda: ask("again") | about
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.wait(timeout=60)


def serve(ready: Callable[[dict[str, Any]], tuple[dict[str, Any], Callable[[int], dict[str, Any]]]]) -> None:
    """The rival's side.

    Args:
        ready: of the job: what to say about this environment, and what does the job, given how often it has
            been done.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr
    os.environ["TQDM_DISABLE"] = "1"
    about, do = ready(json.loads(sys.stdin.readline()))

    def answer(found: dict[str, Any]) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    answer(about)
    for number, _ in enumerate(sys.stdin):
        answer(do(number))
