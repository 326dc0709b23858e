"""Trait files in the form of Chen et al. (2025): instructions, questions, and what a judge is asked."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from subvene.specs import SubveneError, TraitSpec
from subvene.specs.regular_file import read_text

SHIPPED = Path(__file__).parent / "shipped_traits"
_NEEDED = ("instruction", "questions", "eval_prompt")
_VOWELS = frozenset("aeiou")


class TraitError(SubveneError):
    """A trait file cannot be used; the message names the file and the field."""


def question_key(text: str) -> str:
    """What names a question in results: the first 16 hex digits of its text's sha256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Contrast:
    """A question with an answer that shows the trait and one that shows its opposite."""

    question: str
    positive: str
    negative: str


@dataclass(frozen=True)
class Trait:
    """A trait.

    Attributes:
        name: an adjective, which is also the key of its vectors.
        instructions: (positive, negative) instructions of a system prompt.
        questions: what is asked when the vector is extracted.
        evaluation: what is asked when it is evaluated; no question is in both. Empty if nobody gave any.
        eval_prompt: what a judge is asked, with `{question}` and `{answer}`.
        contrasts: answers of either side, written out; empty if the file has none.
        sha256: of all this.
    """

    name: str
    instructions: tuple[tuple[str, str], ...]
    questions: tuple[str, ...]
    evaluation: tuple[str, ...]
    eval_prompt: str
    contrasts: tuple[Contrast, ...]
    sha256: str

    def system_prompts(self) -> list[tuple[str, str]]:
        """(positive, negative) system prompts: `You are a/an {name} assistant. {instruction}`.

        The negative ones name a `helpful` assistant, as the published code does.
        """
        return [
            (f"{_role(self.name)} {positive}", f"{_role('helpful')} {negative}")
            for positive, negative in self.instructions
        ]


def check_evaluation(trait: Trait) -> None:
    """Check that a trait can be evaluated.

    Raises:
        TraitError: nobody gave questions to evaluate it on.
    """
    if not trait.evaluation:
        raise TraitError(
            f"trait {trait.name}: its file has no `evaluation_questions`; name a second file, of "
            "questions that are not in it: `evaluation: FILE`"
        )


def read_trait(declared: str | TraitSpec, folder: Path) -> Trait:
    """The trait that a spec declares.

    Further fields of a file are left alone, so that published files and people's own are read as they are.

    Args:
        declared: the name of a shipped trait, or a file.
        folder: what the file is relative to.

    Raises:
        TraitError: there is no such file, it is not in the published form, or extraction and evaluation
            share a question.
    """
    if isinstance(declared, str):
        path, name, second = SHIPPED / f"{declared}.json", declared, None
    else:
        path, name = folder / Path(declared.file).expanduser(), declared.name
        second = None if declared.evaluation is None else folder / Path(declared.evaluation).expanduser()
    document = _read(path)
    instructions = _instructions(document, path)
    questions = _texts(document, "questions", path)
    prompt = _prompt(document, path)
    contrasts = _contrasts(document, path)
    if second is not None:
        evaluation, where = _texts(_read(second), "questions", second), f"{second}: questions"
    else:
        evaluation, where = (), f"{path}: evaluation_questions"
        if "evaluation_questions" in document:
            evaluation = _texts(document, "evaluation_questions", path)
    shared = [question for question in evaluation if question in questions]
    if shared:
        raise TraitError(
            f"{where}: {shared[0]!r} is among the extraction questions of {path}, too; a vector must not be "
            "evaluated on the questions that it is made of"
        )
    content = [name, instructions, questions, evaluation, prompt, [vars(c) for c in contrasts]]
    sha256 = hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()
    return Trait(name, instructions, questions, evaluation, prompt, contrasts, sha256)


def _role(name: str) -> str:
    article = "an" if name[0].lower() in _VOWELS else "a"
    return f"You are {article} {name.replace('_', ' ')} assistant."


def _read(path: Path) -> dict[str, JsonValue]:
    try:
        document = json.loads(read_text(path))
    except OSError as error:
        raise TraitError(
            f"{path}: cannot be read ({error.strerror}); it is looked for beside the spec"
        ) from error
    except (ValueError, RecursionError) as error:
        raise TraitError(f"{path}: not JSON in UTF-8 ({error})") from error
    if not isinstance(document, dict):
        raise TraitError(f"{path}: expected an object with {_listed(_NEEDED)}, found {_short(document)}")
    # A file of evaluation questions has no more than these; whoever needs more of it says so.
    if "questions" not in document:
        there = ", ".join(map(str, document)) or "no field"
        raise TraitError(f"{path}: no field 'questions'; a trait file has {_listed(_NEEDED)}; found {there}")
    return document


def _instructions(document: dict[str, JsonValue], path: Path) -> tuple[tuple[str, str], ...]:
    rows = _list(document, "instruction", path, "a list of objects with `pos` and `neg`")
    pairs = []
    for i, row in enumerate(rows):
        sides = [row.get(side) if isinstance(row, dict) else None for side in ("pos", "neg")]
        if not all(isinstance(side, str) and side.strip() for side in sides):
            raise TraitError(
                f"{path}: instruction[{i}]: expected an object with the texts `pos` and `neg`, "
                f"found {_short(row)}"
            )
        pairs.append((str(sides[0]).strip(), str(sides[1]).strip()))
    return tuple(pairs)


def _texts(document: dict[str, JsonValue], field: str, path: Path) -> tuple[str, ...]:
    rows = _list(document, field, path, "a list of questions")
    for i, row in enumerate(rows):
        if not isinstance(row, str) or not row.strip():
            raise TraitError(f"{path}: {field}[{i}]: expected non-empty text, found {_short(row)}")
        if row in rows[:i]:
            raise TraitError(f"{path}: {field}[{i}]: expected different questions, {_short(row)} comes twice")
    return tuple(rows)


def _prompt(document: dict[str, JsonValue], path: Path) -> str:
    prompt = document.get("eval_prompt")
    wanted = "text with the places {question} and {answer}"
    if not isinstance(prompt, str):
        raise TraitError(f"{path}: eval_prompt: expected {wanted}, found {_short(prompt)}")
    try:
        places = [field for _, field, _, _ in string.Formatter().parse(prompt) if field is not None]
    except ValueError as error:
        raise TraitError(
            f"{path}: eval_prompt: expected {wanted} ({error}; write {{{{ for a brace)"
        ) from error
    if set(places) != {"question", "answer"}:
        raise TraitError(f"{path}: eval_prompt: expected {wanted}, found the places {places or 'none'}")
    return prompt


def _contrasts(document: dict[str, JsonValue], path: Path) -> tuple[Contrast, ...]:
    if "contrasts" not in document:
        return ()
    rows = _list(document, "contrasts", path, "a list of objects with `question`, `pos` and `neg`")
    found = []
    for i, row in enumerate(rows):
        values = [row.get(field) if isinstance(row, dict) else None for field in ("question", "pos", "neg")]
        if not all(isinstance(value, str) and value.strip() for value in values):
            raise TraitError(
                f"{path}: contrasts[{i}]: expected an object with the texts `question`, `pos` and `neg`, "
                f"found {_short(row)}"
            )
        found.append(Contrast(*map(str, values)))
    return tuple(found)


def _list(document: dict[str, JsonValue], field: str, path: Path, wanted: str) -> list[Any]:
    rows = document.get(field)
    if not isinstance(rows, list) or not rows:
        raise TraitError(f"{path}: {field}: expected {wanted}, not empty, found {_short(rows)}")
    return rows


def _listed(fields: Sequence[str]) -> str:
    return ", ".join(f"`{field}`" for field in fields[:-1]) + f" and `{fields[-1]}`"


def _short(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False, default=repr)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
