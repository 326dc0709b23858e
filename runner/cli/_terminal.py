"""A conversation at a terminal, or over pipes: lines in, answers and notes out."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from subvene.runner.cli._console import EXIT_INVALID, EXIT_NOT_STEERED, err, out, say
from subvene.specs import SubveneError
from subvene.specs._flaws import nearest

if TYPE_CHECKING:
    from subvene.runner.monitor.chat import Answer, ChatSession

_PROMPT = "› "


class Leave(Exception):
    """The session is over."""


class Terminal:
    """Lines in, answers and notes out.

    Args:
        session: the conversation.
        commands: by name, what a line that begins with / may ask for.
        compares: whether every turn is answered without the edit too.
    """

    def __init__(
        self, session: ChatSession, commands: Mapping[str, Command], *, compares: bool = False
    ) -> None:
        self.session = session
        self._commands = commands
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
        with contextlib.suppress(Leave):
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

    def _command(self, name: str) -> Command:
        if name in self._commands:
            return self._commands[name]
        hint = nearest(name, self._commands)
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
        changed = "" if one.changed in (None, one.tokens) else f" ({one.changed} changed)"
        moved = "" if one.mean_relative is None else f", ‖Δ‖ {one.mean_relative:.1%} of ‖h‖ on average"
        parts.append(f"{name}: edited {one.tokens} tokens{changed}{moved}")
    return "; ".join(parts) or "no intervention"


@dataclass(frozen=True)
class Command:
    """What a line that begins with / does.

    Attributes:
        usage: how it is typed.
        help: what it does, in a few words.
        run: does it, with what stands after the name.
    """

    usage: str
    help: str
    run: Callable[[Terminal, str], None]


def _is_unsteered(error: SubveneError) -> bool:
    from subvene.runner.edits.not_finite import NotFiniteError
    from subvene.runner.edits.receipt import NotSteeredError

    return isinstance(error, NotSteeredError | NotFiniteError)
