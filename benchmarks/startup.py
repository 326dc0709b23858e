"""CPU time (user, system) of `subvene --help` and of `subvene validate` beside a bare `import pydantic`."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from harness import arguments, interleaved, report

ROOT = Path(__file__).parent.parent
BARE = "import pydantic"


def of_children() -> float:
    """CPU seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def process(*arguments: str) -> Callable[[], object]:
    """One run of this Python in a process of its own."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def command(*arguments: str) -> Callable[[], object]:
    """One run of `subvene` as its script does it."""
    return process("-c", "from subvene.runner.cli.app import main; main()", *arguments)


def main() -> None:
    options = arguments(__doc__ or "")
    arms = {BARE: process("-c", "from pydantic import BaseModel"), "--help": command("--help")}
    for example in sorted((ROOT / "examples").glob("*.yaml")):
        arms[f"validate {example.name}"] = command("validate", str(example))
    rounds = options.rounds or (2 if options.quick else 10)
    seconds = interleaved(arms, BARE, rounds, clock=of_children)
    report(
        "startup", seconds, BARE, notes="CPU seconds; the budget: 0.35 for --help, 0.5 for validate, alone."
    )


if __name__ == "__main__":
    main()
