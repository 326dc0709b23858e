"""Standard output and standard error: what is printed where, and what keeps quiet.

Results go to standard output, everything else to standard error. With `--json`, standard output carries one
JSON document and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from subvene.runner.terminal import console

if TYPE_CHECKING:
    from rich.console import Console

EXIT_INVALID, EXIT_USAGE, EXIT_NOT_STEERED, EXIT_INTERRUPTED = 1, 2, 3, 130

EPILOG = (
    "Exit codes: 0 done; 1 the file, artifact or model is not valid; 2 wrong usage; "
    "3 the run was not steered as declared, or is not finite; 130 interrupted (Ctrl-C)."
)


def out() -> Console:
    """Standard output: colours on a terminal only, `COLUMNS` or 80 columns wide elsewhere."""
    return console(stderr=False)


def err() -> Console:
    """Standard error, likewise."""
    return console(stderr=True)


@contextlib.contextmanager
def results(as_json: bool) -> Iterator[Callable[[Any], None]]:
    """Gives the function that prints a command's JSON document, and keeps all else off standard output.

    Args:
        as_json: whether `--json` was given; if not, standard output is left alone.
    """
    stdout = sys.stdout

    def emit(document: Any) -> None:
        text = json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False)
        # JSON escapes the other control characters by itself.
        stdout.write(re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")

    if not as_json:
        yield emit
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield emit


def _finite(value: Any) -> Any:
    """`value` with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def quiet_libraries() -> None:
    """Libraries' own bars off: they are about the work of a second. Downloads keep theirs on a terminal."""
    import huggingface_hub.utils
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings of ours as one line each, without the line of code that raised them."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def showwarning(message: Any, category: Any, *rest: Any, **more: Any) -> None:
            if category.__module__.startswith("subvene."):
                err().print(f"warning: {message}", style="yellow", soft_wrap=True)
            else:
                show(message, category, *rest, **more)

        warnings.showwarning = showwarning
        yield
