"""The commands of a session of `subvene chat`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from subvene.runner.cli._terminal import Command, Leave, Terminal, edited_in_words
from subvene.specs import SubveneError


def _coef(terminal: Terminal, argument: str) -> None:
    if argument:
        *name, number = argument.rsplit(None, 1)
        terminal.session.set_strength(_number(number, "/coef [NAME] X"), *name)
    terminal.note(terminal.state() + ("" if terminal.session.on else "; /on switches the edit on"))


def _switch(on: bool) -> Callable[[Terminal, str], None]:
    def switch(terminal: Terminal, argument: str) -> None:
        _no_argument("on" if on else "off", argument)
        terminal.session.on = on
        terminal.note(terminal.state())

    return switch


def _compare(terminal: Terminal, argument: str) -> None:
    if argument:
        terminal.compare(argument)
        return
    terminal.compares = not terminal.compares
    if terminal.compares:
        terminal.note(
            "every turn is answered without and with the edit, and goes on from the answer with it"
            + ("" if terminal.session.on else " (once the edit is on: /on)")
        )
    else:
        terminal.note("every turn is answered once")


def _reset(terminal: Terminal, argument: str) -> None:
    _no_argument("reset", argument)
    turns = terminal.session.reset()
    kept = "" if terminal.session.system is None else "; the system prompt stays"
    terminal.note(f"{turns} turn{'s' * (turns != 1)} forgotten{kept}")


def _system(terminal: Terminal, argument: str) -> None:
    terminal.session.set_system(argument or None)
    terminal.note("system prompt set, from the next answer on" if argument else "no system prompt")


def _seed(terminal: Terminal, argument: str) -> None:
    try:
        terminal.session.set_seed(int(argument))
    except ValueError as error:
        if isinstance(error, SubveneError):
            raise
        raise SubveneError(f"{argument!r} is no whole number; usage: /seed N") from None
    greedy = terminal.session.temperature == 0
    terminal.note(
        f"seed {terminal.session.seed}" + (" (temperature 0 is greedy: no effect)" if greedy else "")
    )


def _temperature(terminal: Terminal, argument: str) -> None:
    terminal.session.set_temperature(_number(argument, "/temperature T"))
    value = terminal.session.temperature
    terminal.note(f"temperature {value:g}, seed {terminal.session.seed}" if value else "greedy")


def _history(terminal: Terminal, argument: str) -> None:
    _no_argument("history", argument)
    lines = [f"{message['role']}: {message['content']}" for message in terminal.session.messages]
    terminal.note("\n".join(lines) or "nothing yet")


def _save(terminal: Terminal, argument: str) -> None:
    if not argument:
        raise SubveneError("no file; usage: /save FILE")
    path = terminal.session.save(argument)
    turns = terminal.session.turns
    terminal.note(f"{turns} turn{'s' * (turns != 1)} saved in {path}")


def _receipt(terminal: Terminal, argument: str) -> None:
    from subvene.runner.cli._words import receipt_in_words

    _no_argument("receipt", argument)
    last = terminal.session.last
    if last is None:
        terminal.note("no answer yet")
    elif last.receipt is None:
        terminal.note(edited_in_words(last))
    else:
        terminal.note("\n".join(receipt_in_words(one) for one in last.receipt.to_dict()))


def _help(terminal: Terminal, argument: str) -> None:
    _no_argument("help", argument)
    width = max(len(command.usage) for command in COMMANDS.values())
    terminal.note("\n".join(f"{command.usage:<{width}}  {command.help}" for command in COMMANDS.values()))
    terminal.note(f"{'//TEXT':<{width}}  say TEXT with a / before it to the model")


def _quit(_terminal: Terminal, argument: str) -> None:
    _no_argument("quit", argument)
    raise Leave


COMMANDS: Mapping[str, Command] = {
    "coef": Command("/coef [NAME] X", "set an intervention's strength; alone: show them", _coef),
    "off": Command("/off", "answer as the untouched model", _switch(False)),
    "on": Command("/on", "edit again", _switch(True)),
    "compare": Command("/compare [TEXT]", "answer without and with the edit: this TEXT, or all", _compare),
    "reset": Command("/reset", "forget the conversation, keep the settings", _reset),
    "system": Command("/system [TEXT]", "set the system prompt; alone: remove it", _system),
    "seed": Command("/seed N", "seed of the sampling", _seed),
    "temperature": Command("/temperature T", "sample at this temperature; 0 is greedy", _temperature),
    "history": Command("/history", "the conversation so far", _history),
    "save": Command("/save FILE", 'write it as JSONL, {"messages": […]}', _save),
    "receipt": Command("/receipt", "all that is known of the last answer's edit", _receipt),
    "help": Command("/help", "this list", _help),
    "quit": Command("/quit", "leave (or Ctrl-D)", _quit),
}


def _no_argument(name: str, argument: str) -> None:
    if argument:
        raise SubveneError(f"/{name} takes nothing after it, found {argument!r}")


def _number(text: str, usage: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SubveneError(f"{text!r} is no number; usage: {usage}") from None
