"""The command line: which commands there are, and what becomes of their errors."""

from __future__ import annotations

import gc
import importlib
import os
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from subvene.runner.cli._console import (
    EPILOG,
    EXIT_INTERRUPTED,
    EXIT_INVALID,
    EXIT_NOT_STEERED,
    err,
    plain_warnings,
    printable_usage,
)
from subvene.runner.files.printable import printable_logs

COMMANDS: dict[str, tuple[str, str]] = {
    "init": (
        "init:init",
        "Write a commented spec for a task, with data beside it: change both to make it yours.",
    ),
    "doctor": (
        "doctor:doctor",
        "Look at this installation: versions, devices, caches, token, data, and what optional parts would "
        "give.",
    ),
    "validate": ("validate:validate", "Check spec files, and say everything that is wrong with them."),
    "schema": ("validate:schema", "Print the JSON Schema of spec files, for editors."),
    "fit": ("fit:fit", "Fit the tensors that a spec declares, and save them with it as an artifact."),
    "generate": (
        "generate:generate",
        "Answer prompts with the interventions at work; greedy unless a temperature or top-p is given.",
    ),
    "chat": (
        "chat:chat",
        "Talk with the model, its interventions at work; /help lists the commands of a session.",
    ),
    "serve": (
        "serve:serve",
        "Serve artifacts as models of an OpenAI-compatible server, each answer with its receipt.",
    ),
    "ui": (
        "ui:ui",
        "Open a page on this machine with a slider for every strength: baseline beside steered, streamed.",
    ),
    "show": (
        "show:show",
        "Say what a spec or an artifact does: sites, tokens, strengths, tensors, and which edits commute.",
    ),
    "run": ("run:run", "Run an experiment: fit, evaluate, save."),
    "power": (
        "power:power",
        "Say the smallest p of a rank among draws, and the difference that so many questions show.",
    ),
    "project": ("project:project", "Project every assistant's turn of a transcript on the stored vectors."),
    "screen": (
        "screen:screen",
        "Screen training data: mean projection of its answers, less that of the model's own answers.",
    ),
    "export": (
        "export:export",
        "Write an artifact in another format and measure it; what is not exact is refused, and why.",
    ),
    "push": (
        "push:push",
        "Push an artifact to the Hugging Face Hub: one commit, with a complete model card.",
    ),
    "pull": (
        "pull:pull",
        "Copy an artifact from the Hugging Face Hub into a folder: whole and checked, or not at all.",
    ),
    "import": (
        "import_:import_",
        "Make an artifact of what another tool made; the conversion of its conventions is stated.",
    ),
    "set": (
        "set_:set_",
        "Change layers, strengths, positions or other fields of an artifact; its hashes and card are "
        "renewed.",
    ),
    "lm-eval": (
        "lm_eval:lm_eval",
        "Run lm-evaluation-harness's own command, which then knows artifacts as models.",
    ),
    "judge": (
        "judge:judge_app",
        "Judges of truth and informativeness: how good they are, and how to make your own.",
    ),
}
"""By name: where a command is, and how its help begins, so that the list of commands imports none."""

_HANDS_OPTIONS_ON = {"lm-eval", "serve"}
"""Commands that give options which they do not know to another program, which refuses them or not."""


class _Commands(TyperGroup):
    """Every error that subvene raises on purpose becomes one message and an exit code.

    A command's module is imported when it is called: the specs alone take longer than `--help` may.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """What stands in the list of commands; `resolve_command` gives the command itself."""
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(cmd_name, callback=lambda: None, help=COMMANDS[cmd_name][1])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else _loaded(name), rest

    def make_context(self, *args: Any, **more: Any) -> Any:
        with printable_usage():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        try:
            with plain_warnings(), printable_logs(), printable_usage():
                return super().invoke(ctx)
        except BrokenPipeError:
            raise  # typer's own: whoever read the output has left
        except Exception as error:
            if (code := _exit_code(error)) is None:
                raise
            err().print(f"error: {error}", style="red", soft_wrap=True)
            raise typer.Exit(code) from None
        except KeyboardInterrupt:
            err().print("interrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from None


def _exit_code(error: Exception) -> int | None:
    """The code for an error that subvene raises on purpose; None for another."""
    # By name: the classes live in modules that take longer to import than some commands run.
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & {"NotSteeredError", "NotFiniteError"}:
        return EXIT_NOT_STEERED
    return EXIT_INVALID if names & {"SubveneError", "OSError"} else None


app = typer.Typer(
    cls=_Commands,
    name="subvene",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
)


def _loaded(name: str) -> Any:
    """The command of that name."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    declared = getattr(importlib.import_module(f"subvene.runner.cli.{module}"), attribute)
    gc.enable()
    if not isinstance(declared, typer.Typer):
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        settings = {"ignore_unknown_options": True} if name in _HANDS_OPTIONS_ON else None
        alone.command(name, epilog=EPILOG, context_settings=settings)(declared)
        declared = alone
    return get_command(declared)


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
    # No command has a use for plugins of pydantic; to look for them is to read every package's metadata.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    gc.disable()  # until the command is imported: what modules make is not garbage
    app()
