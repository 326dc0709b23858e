"""The command line: which commands there are, and what becomes of their errors."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from subvene.runner.cli._console import (
    EPILOG,
    EXIT_INTERRUPTED,
    EXIT_INVALID,
    EXIT_NOT_STEERED,
    err,
    plain_warnings,
    printable_usage,
)
from subvene.runner.cli.chat import chat
from subvene.runner.cli.export import export
from subvene.runner.cli.fit import fit
from subvene.runner.cli.generate import generate
from subvene.runner.cli.import_ import import_
from subvene.runner.cli.judge import judge_app
from subvene.runner.cli.project import project
from subvene.runner.cli.pull import pull
from subvene.runner.cli.push import push
from subvene.runner.cli.run import run
from subvene.runner.cli.screen import screen
from subvene.runner.cli.set_ import set_
from subvene.runner.cli.show import show
from subvene.runner.cli.validate import schema, validate
from subvene.runner.files.printable import printable_logs
from subvene.specs import SubveneError


class _Commands(TyperGroup):
    """Every error that subvene raises on purpose becomes one message and an exit code."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        with printable_usage():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        try:
            with plain_warnings(), printable_logs(), printable_usage():
                return super().invoke(ctx)
        except SubveneError as error:
            err().print(f"error: {error}", style="red", soft_wrap=True)
            raise typer.Exit(_exit_code(error)) from None
        except BrokenPipeError:
            raise  # typer's own: whoever read the output has left
        except OSError as error:
            err().print(f"error: {error}", style="red", soft_wrap=True)
            raise typer.Exit(EXIT_INVALID) from None
        except KeyboardInterrupt:
            err().print("interrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from None


def _exit_code(error: SubveneError) -> int:
    # By name: the class lives in a module that imports torch, which this one must not.
    names = {cls.__name__ for cls in type(error).__mro__}
    return EXIT_NOT_STEERED if names & {"NotSteeredError", "NotFiniteError"} else EXIT_INVALID


app = typer.Typer(
    cls=_Commands,
    name="subvene",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
)
for command in (validate, schema, fit, generate, chat, show, run, project, screen, export, push, pull):
    app.command(epilog=EPILOG)(command)
app.command("import", epilog=EPILOG)(import_)
app.command("set", epilog=EPILOG)(set_)
app.add_typer(judge_app)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"subvene {version('subvene')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Declared interventions on language models: one YAML file, checked, run, measured and saved."""


def main() -> None:
    """The entry point `subvene`."""
    app()
