"""Standard output and standard error: what is printed where, and what keeps quiet.

Results go to standard output, everything else to standard error. With `--json`, standard output carries one
JSON document and nothing else.
"""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from subvene.runner.files.printable import in_json, on_screen

if TYPE_CHECKING:
    from rich.console import Console

EXIT_INVALID, EXIT_USAGE, EXIT_NOT_STEERED, EXIT_INTERRUPTED = 1, 2, 3, 130

EPILOG = (
    "Exit codes: 0 done; 1 the file, artifact or model is not valid; 2 wrong usage; "
    "3 the run was not steered as declared, or is not finite; 130 interrupted (Ctrl-C)."
)


def out() -> Console:
    """Standard output: colours on a terminal only, `COLUMNS` or 80 columns wide elsewhere."""
    return _console(stderr=False)


def err() -> Console:
    """Standard error, likewise."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    from subvene.runner.files.console import Console

    return Console(stderr=stderr)


def say(text: str, *, end: str = "\n") -> None:
    """Text on standard output as it is; on a terminal without what a terminal would obey.

    A model may write anything, escape codes included; a file gets it as it is.
    """
    sys.stdout.write((on_screen(text) if sys.stdout.isatty() else text) + end)
    sys.stdout.flush()


@contextlib.contextmanager
def printable_usage() -> Iterator[None]:
    """Errors of usage, which the command line's library prints, `on_screen`: they quote what was typed."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message") and isinstance(getattr(error, "message", None), str):
            error.message = on_screen(error.message)  # type: ignore[attr-defined]
        raise


@contextlib.contextmanager
def results(as_json: bool) -> Iterator[Callable[[Any], None]]:
    """Gives the function that prints a command's JSON document, and keeps all else off standard output.

    Args:
        as_json: whether `--json` was given; if not, standard output is left alone.
    """
    stdout = sys.stdout

    def emit(document: Any) -> None:
        import json  # `--help` needs none

        text = json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False)
        stdout.write(in_json(text) + "\n")

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
                show(on_screen(str(message)), category, *rest, **more)

        warnings.showwarning = showwarning
        yield
