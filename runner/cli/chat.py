"""`subvene chat`: a conversation with an edited model, and the commands that change the edit between turns.

Answers go to standard output and nothing else does; what was edited, replies to commands and errors go to
standard error. Without a terminal every line of standard input is a turn or a command.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from subvene.runner.cli._console import EXIT_INVALID, EXIT_NOT_STEERED, err, out, quiet_libraries, say
from subvene.runner.cli._options import (
    Attention,
    Device,
    DeviceMap,
    DtypeOption,
    Model,
    SourcePath,
    model_overrides,
    parse_strengths,
)
from subvene.runner.cli._source import open_source
from subvene.specs import SubveneError
from subvene.specs._flaws import nearest

if TYPE_CHECKING:
    from subvene.runner.monitor.chat import Answer, ChatSession

_SAMPLING = "Sampling"
_PROMPT = "› "


def chat(
    source: SourcePath,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    strength: Annotated[
        list[str] | None,
        typer.Option(metavar="X|NAME=X", help="Strength in place of the spec's. Repeatable."),
    ] = None,
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
    overrides = model_overrides(
        name=model,
        dtype=dtype and dtype.value,
        device=device,
        device_map=device_map,
        attn_implementation=attn_implementation,
    )
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
    code = _Terminal(session, compares=compare).run()
    if code:
        raise typer.Exit(code)


class _Leave(Exception):
    """The session is over."""


class _Terminal:
    """Lines in, answers and notes out.

    Args:
        session: the conversation.
        compares: whether every turn is answered without the edit too.
    """

    def __init__(self, session: ChatSession, *, compares: bool = False) -> None:
        self.session = session
        self.compares = compares
        self.interactive = sys.stdin.isatty()
        self._is_midline = False

    def run(self) -> int:
        """Until the end of standard input or `/quit`.

        Returns:
            The exit code: whatever somebody at a terminal typed, they have seen what became of it.
        """
        code = 0
        if self.interactive:
            self.note(f"{self.session.model.spec.model.name} · {self.state()} · /help lists the commands")
        with contextlib.suppress(_Leave):
            for line in self._lines():
                try:
                    self.take(line)
                except SubveneError as error:
                    unsteered = _is_unsteered(error)
                    self.fail(f"{error}{'; the answer is not part of the conversation' * unsteered}")
                    found = EXIT_NOT_STEERED if unsteered else EXIT_INVALID
                    code = max(code, 0 if self.interactive else found)
                except KeyboardInterrupt:
                    # One that came just after an answer ended must not end the session with it.
                    if not self.interactive:
                        raise
                    self._stays()
        return code

    def take(self, line: str) -> None:
        """One line: a command, a turn, or nothing."""
        line = line.strip()
        if not line:
            return
        if line.startswith("/") and not line.startswith("//"):
            name, argument = [*line[1:].split(None, 1), "", ""][:2]
            self._command(name.lower()).run(self, argument)
            return
        text = line.removeprefix("/")
        if self.compares and self.session.on:
            self.compare(text)
        else:
            self.say(text)

    def say(self, text: str) -> None:
        """Answer a turn, streamed."""
        try:
            with self._ctrl_c() as stop:
                answer = self.session.say(text, on_text=self._show, stop=stop)
        except BaseException:
            # What is said of it begins a line of its own.
            if self._is_midline:
                self._show("\n")
            raise
        self._show("\n")
        self._report(answer)

    def compare(self, text: str) -> None:
        """Answer a turn without and with the edit, side by side."""
        from subvene.runner.cli._tables import print_side_by_side
        from subvene.runner.files.progress import status

        with self._ctrl_c() as stop, status("answering without and with the edit"):
            plain, edited = self.session.compare(text, stop=stop)
        print_side_by_side(out(), text, ("without", "with the edit"), (plain.text, edited.text))
        sys.stdout.flush()
        same = ["the same tokens as without it"] if plain.ids == edited.ids else []
        without = [f"without it: {e}" for e in self._ending(plain) if e not in self._ending(edited)]
        self._report(edited, *same, *without, "the conversation goes on with the edited answer")

    def note(self, text: str) -> None:
        """A dim line (or several) on standard error."""
        err().print(text, style="dim", soft_wrap=True)

    def fail(self, text: str) -> None:
        """An error that the session survives."""
        err().print(f"error: {text}", style="red", soft_wrap=True)

    def state(self) -> str:
        """What the next answer will be edited by."""
        strengths = ", ".join(f"{name} {value:g}" for name, value in self.session.strengths.items())
        return strengths if self.session.on else f"off ({strengths})"

    def _report(self, answer: Answer, *more: str) -> None:
        self.note(" · ".join([edited_in_words(answer), *self._ending(answer), *more]))

    def _ending(self, answer: Answer) -> list[str]:
        """What is unusual about the way an answer ends."""
        endings = {
            "max_new_tokens": f"cut at {len(answer.ids)} tokens (--max-new-tokens)",
            "context": f"cut: the model's {self.session.context} tokens are full; /reset starts anew",
            "stopped": f"stopped after {len(answer.ids)} tokens, which stay in the conversation",
        }
        empty = [] if answer.text.strip() else ["the answer is empty"]
        return empty + ([endings[answer.ending]] if answer.ending in endings else [])

    def _command(self, name: str) -> _Command:
        if name in _COMMANDS:
            return _COMMANDS[name]
        hint = nearest(name, _COMMANDS)
        raise SubveneError(
            f"no command /{name}; " + (f"did you mean /{hint}?" if hint else "/help lists them") + " "
            "(to say it to the model, begin with //)"
        )

    def _show(self, text: str) -> None:
        say(text, end="")
        self._is_midline = not text.endswith("\n")

    def _lines(self) -> Iterator[str]:
        if not self.interactive:
            try:
                yield from sys.stdin
            except UnicodeDecodeError as error:
                raise SubveneError(f"standard input is not {error.encoding} text ({error.reason})") from error
            return
        with contextlib.suppress(ImportError):  # not on every system; without it lines have no history
            import readline  # noqa: F401 — importing it is what gives `input` its history and editing
        while True:
            try:
                yield self._ask()
            except EOFError:
                self.note("")
                return
            except KeyboardInterrupt:
                self._stays()

    def _stays(self) -> None:
        self.note("\nCtrl-D or /quit leaves")

    def _ask(self) -> str:
        if sys.stdout.isatty():
            return input(_PROMPT)
        # `input` would write its prompt among the answers, which go elsewhere.
        sys.stderr.write(_PROMPT)
        sys.stderr.flush()
        return input()

    @contextlib.contextmanager
    def _ctrl_c(self) -> Iterator[Callable[[], bool] | None]:
        """Makes Ctrl-C end the answer at its next token; a second one breaks off at once.

        Without a terminal nobody is there to go on, and Ctrl-C ends the command as it does elsewhere.
        """
        if not self.interactive or threading.current_thread() is not threading.main_thread():
            yield None
            return
        asked = threading.Event()

        def stop(_signal: int, _frame: object) -> None:
            if asked.is_set():
                raise KeyboardInterrupt
            asked.set()

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield asked.is_set
        except KeyboardInterrupt:
            raise SubveneError("broken off; this turn is not part of the conversation") from None
        finally:
            signal.signal(signal.SIGINT, before)


def edited_in_words(answer: Answer) -> str:
    """What was edited in an answer, in one line; also where nothing was."""
    if answer.receipt is None:
        return "off: nothing edited"
    parts = []
    for one in answer.receipt:
        name = f"{one.name} {one.strengths[0]:g}"
        if one.is_off:
            parts.append(f"{name}: nothing edited")
            continue
        changed = "" if one.changed == one.tokens else f" ({one.changed} changed)"
        parts.append(
            f"{name}: edited {one.tokens} tokens{changed}, ‖Δ‖ {one.mean_relative:.1%} of ‖h‖ on average"
        )
    return "; ".join(parts) or "no intervention"


@dataclass(frozen=True)
class _Command:
    usage: str
    help: str
    run: Callable[[_Terminal, str], None]


def _coef(terminal: _Terminal, argument: str) -> None:
    if argument:
        *name, number = argument.rsplit(None, 1)
        terminal.session.set_strength(_number(number, "/coef [NAME] X"), *name)
    terminal.note(terminal.state() + ("" if terminal.session.on else "; /on switches the edit on"))


def _switch(on: bool) -> Callable[[_Terminal, str], None]:
    def switch(terminal: _Terminal, argument: str) -> None:
        _no_argument("on" if on else "off", argument)
        terminal.session.on = on
        terminal.note(terminal.state())

    return switch


def _compare(terminal: _Terminal, argument: str) -> None:
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


def _reset(terminal: _Terminal, argument: str) -> None:
    _no_argument("reset", argument)
    turns = terminal.session.reset()
    kept = "" if terminal.session.system is None else "; the system prompt stays"
    terminal.note(f"{turns} turn{'s' * (turns != 1)} forgotten{kept}")


def _system(terminal: _Terminal, argument: str) -> None:
    terminal.session.set_system(argument or None)
    terminal.note("system prompt set, from the next answer on" if argument else "no system prompt")


def _seed(terminal: _Terminal, argument: str) -> None:
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


def _temperature(terminal: _Terminal, argument: str) -> None:
    terminal.session.set_temperature(_number(argument, "/temperature T"))
    value = terminal.session.temperature
    terminal.note(f"temperature {value:g}, seed {terminal.session.seed}" if value else "greedy")


def _history(terminal: _Terminal, argument: str) -> None:
    _no_argument("history", argument)
    lines = [f"{message['role']}: {message['content']}" for message in terminal.session.messages]
    terminal.note("\n".join(lines) or "nothing yet")


def _save(terminal: _Terminal, argument: str) -> None:
    if not argument:
        raise SubveneError("no file; usage: /save FILE")
    path = terminal.session.save(argument)
    turns = terminal.session.turns
    terminal.note(f"{turns} turn{'s' * (turns != 1)} saved in {path}")


def _receipt(terminal: _Terminal, argument: str) -> None:
    from subvene.runner.cli._words import receipt_in_words

    _no_argument("receipt", argument)
    last = terminal.session.last
    if last is None:
        terminal.note("no answer yet")
    elif last.receipt is None:
        terminal.note(edited_in_words(last))
    else:
        terminal.note("\n".join(receipt_in_words(one) for one in last.receipt.to_dict()))


def _help(terminal: _Terminal, argument: str) -> None:
    _no_argument("help", argument)
    width = max(len(command.usage) for command in _COMMANDS.values())
    terminal.note("\n".join(f"{command.usage:<{width}}  {command.help}" for command in _COMMANDS.values()))
    terminal.note(f"{'//TEXT':<{width}}  say TEXT with a / before it to the model")


def _quit(_terminal: _Terminal, argument: str) -> None:
    _no_argument("quit", argument)
    raise _Leave


_COMMANDS: Mapping[str, _Command] = {
    "coef": _Command("/coef [NAME] X", "set an intervention's strength; alone: show them", _coef),
    "off": _Command("/off", "answer as the untouched model", _switch(False)),
    "on": _Command("/on", "edit again", _switch(True)),
    "compare": _Command("/compare [TEXT]", "answer without and with the edit: this TEXT, or all", _compare),
    "reset": _Command("/reset", "forget the conversation, keep the settings", _reset),
    "system": _Command("/system [TEXT]", "set the system prompt; alone: remove it", _system),
    "seed": _Command("/seed N", "seed of the sampling", _seed),
    "temperature": _Command("/temperature T", "sample at this temperature; 0 is greedy", _temperature),
    "history": _Command("/history", "the conversation so far", _history),
    "save": _Command("/save FILE", 'write it as JSONL, {"messages": […]}', _save),
    "receipt": _Command("/receipt", "all that is known of the last answer's edit", _receipt),
    "help": _Command("/help", "this list", _help),
    "quit": _Command("/quit", "leave (or Ctrl-D)", _quit),
}


def _no_argument(name: str, argument: str) -> None:
    if argument:
        raise SubveneError(f"/{name} takes nothing after it, found {argument!r}")


def _number(text: str, usage: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SubveneError(f"{text!r} is no number; usage: {usage}") from None


def _is_unsteered(error: SubveneError) -> bool:
    from subvene.runner.edits.not_finite import NotFiniteError
    from subvene.runner.edits.receipt import NotSteeredError

    return isinstance(error, NotSteeredError | NotFiniteError)
