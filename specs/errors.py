"""What goes wrong with a file, said so that its author can mend it.

This file knows nothing of YAML or pydantic: it holds the shape of a problem and the exceptions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class SubveneError(Exception):
    """The base of every error that subvene raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one place of a file.

    Attributes:
        file: The file as the user named it.
        line: 1-based line, None where no line is to blame.
        column: 1-based column in characters, None where no column is to blame.
        path: The field, like ``interventions[1].layer``; empty for the file as a whole.
        expected: What would have been right, in words.
        found: What stands there, shortened.
        hint: The nearest valid name, for a misspelt one.
    """

    file: str
    line: int | None
    column: int | None
    path: str
    expected: str
    found: str
    hint: str | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        path = f"{self.path}: " if self.path else ""
        hint = f"; did you mean '{self.hint}'?" if self.hint is not None else ""
        return f"{place}: {path}expected {self.expected}, found {self.found}{hint}"


class SpecError(SubveneError, ValueError):
    """A file is not a valid spec; the message lists every problem, one a line.

    Attributes:
        problems: The problems, in the order in which they stand in the file.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[SpecError], tuple[tuple[Problem, ...]]]:
        return (type(self), (self.problems,))
