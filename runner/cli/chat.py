"""`subvene chat`: a conversation with an edited model, and the commands that change the edit between turns.

Answers go to standard output and nothing else does; what was edited, replies to commands and errors go to
standard error. Without a terminal every line of standard input is a turn or a command.
"""

from __future__ import annotations

from typing import Annotated

import typer

from subvene.runner.cli._chat_commands import COMMANDS
from subvene.runner.cli._console import quiet_libraries
from subvene.runner.cli._options import (
    Attention,
    Device,
    DeviceMap,
    DtypeOption,
    Model,
    SourcePath,
    Strengths,
    System,
    model_overrides,
    parse_strengths,
)
from subvene.runner.cli._source import open_source
from subvene.runner.cli._terminal import Terminal

_SAMPLING = "Sampling"


def chat(
    source: SourcePath,
    system: System = None,
    strength: Strengths = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show the untouched model's answers beside the edited ones.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[
        float,
        typer.Option(min=0, help="Sample at this temperature; 0 is greedy.", rich_help_panel=_SAMPLING),
    ] = 0.0,
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Sample from this much probability, above temperature 0.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.", rich_help_panel=_SAMPLING)] = 0,
    model: Model = None,
    dtype: DtypeOption = None,
    device: Device = None,
    device_map: DeviceMap = None,
    attn_implementation: Attention = None,
) -> None:
    """Talk with the model, its interventions at work; /help lists the commands of a session.

    A line is a turn, and one that begins with / a command. Ctrl-C stops an
    answer, Ctrl-D leaves. Lines may be piped in: only answers go to standard
    output, and the exit code tells of lines that failed.
    """
    overrides = model_overrides(model, dtype, device, attn_implementation, device_map)
    opened = open_source(source)
    from subvene.runner.edits.compile import entry_name
    from subvene.runner.monitor.chat import ChatSession

    names = [entry_name(opened.spec, i) for i in range(len(opened.spec.interventions))]
    strengths = parse_strengths(strength or [], opened.spec, names)
    quiet_libraries()
    session = ChatSession(
        opened.load(**overrides),
        strengths=strengths,
        system=system,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    code = Terminal(session, COMMANDS, compares=compare).run()
    if code:
        raise typer.Exit(code)
