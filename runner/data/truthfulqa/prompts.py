"""What stands before a question, as text and as token ids.

Every question's prompt is tokenised whole, and every answer on its own: where the prompt ends and the answer
begins is then exact for every tokenizer (Llama 3 has one token for `?` with a newline), and generation and
scoring see the same ids.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from subvene.runner.data.chat_template import has_template, takes_system
from subvene.runner.data.text import Messages, TextError, plain, prompt_ids, reply_ids, response_ids
from subvene.specs import SubveneError
from subvene.specs.regular_file import read_text

Preset = Literal["qa", "instruction_qa", "chat"]

# Questions that begin and end unlike: what their prompts have in common stands before the question.
_PROBES = ("Is it?", 'Who said, "zinc"?', "7 or 8: name one.")


class PromptError(SubveneError, ValueError):
    """A primer or an instruction is not what it should be, or does not fit the model's template."""


@dataclass(frozen=True)
class Encoded:
    """The prompts of several questions.

    Attributes:
        shared: the token ids with which every prompt begins.
        prompts: each prompt's token ids, `shared` included, always longer than `shared`.
    """

    shared: tuple[int, ...]
    prompts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Prompts:
    """The way in which questions are asked; no tokenizer or model is needed to make one.

    Attributes:
        preset: `qa`, `instruction_qa` or `chat`.
        primer: (question, answer) of the pairs that stand before the question.
        instruction: the instruction; None under `qa`, which has none.
    """

    preset: Preset
    primer: tuple[tuple[str, str], ...]
    instruction: str | None

    @property
    def is_chat(self) -> bool:
        """Whether the model's chat template is used."""
        return self.preset == "chat"

    def under(self, system: str) -> Prompts:
        """The same, with a system prompt before the instruction: its own paragraph, or the template's."""
        both = system if self.instruction is None else f"{system}\n\n{self.instruction}"
        return replace(self, instruction=both)

    def text(self, question: str) -> str:
        """The prompt of a question as plain text; not for `chat`, whose text is the template's business."""
        if self.is_chat:
            raise PromptError("preset chat: the text of a prompt is made by the model's template")
        parts = [] if self.instruction is None else [self.instruction]
        parts += [f"Q: {asked}\nA: {answer}" for asked, answer in self.primer]
        return "\n\n".join([*parts, f"Q: {question}\nA:"])

    def encode(self, tokenizer: Any, questions: Sequence[str], *, answered: bool = False) -> Encoded:
        """Token ids of the questions' prompts, and what all of them begin with.

        Args:
            tokenizer: the model's.
            questions: the questions.
            answered: reference answers will stand behind the prompts, which then end outside of any block of
                reasoning (`reply_ids`).

        Raises:
            PromptError: the tokenizer has no chat template, or one that accepts no instruction.
        """
        texts = [*_PROBES, *questions]
        rows = self._chat_ids(tokenizer, texts) if self.is_chat else self._plain_ids(tokenizer, texts)
        if answered:
            rows = [reply_ids(tokenizer, row, "")[0] for row in rows]
        # The last token of a prompt is never shared: something must be passed after the shared part.
        longest = min(len(row) for row in rows) - 1
        first = rows[0]
        shared = next((i for i in range(longest) if any(row[i] != first[i] for row in rows)), longest)
        return Encoded(tuple(first[:shared]), tuple(tuple(row) for row in rows[len(_PROBES) :]))

    def answer_ids(self, tokenizer: Any, answers: Sequence[str]) -> list[list[int]]:
        """Token ids of answers as the model would write them after a prompt."""
        if not answers:
            return []
        if self.is_chat:
            return [response_ids(tokenizer, answer) for answer in answers]
        for answer in answers:
            plain(tokenizer, answer, "an answer")
        # After `A:`, since a sentencepiece tokenizer puts a second space before a text of its own.
        before = tokenizer("A:", add_special_tokens=False)["input_ids"]
        texts = [f"A: {answer}" for answer in answers]
        rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
        if any(row[: len(before)] != before for row in rows):
            rows = tokenizer([f" {answer}" for answer in answers], add_special_tokens=False)["input_ids"]
            before = []
        return [list(row[len(before) :]) for row in rows]

    def _plain_ids(self, tokenizer: Any, questions: Sequence[str]) -> list[list[int]]:
        texts = [self.text(plain(tokenizer, question, "a question")) for question in questions]
        start = _leading_ids(tokenizer)
        rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [[*start, *row] for row in rows]

    def _chat_ids(self, tokenizer: Any, questions: Sequence[str]) -> list[list[int]]:
        folded = self.instruction is not None and has_template(tokenizer) and not takes_system(tokenizer)
        rows = []
        for question in questions:
            messages = self._messages(question, folded=folded)
            try:
                rows.append(prompt_ids(tokenizer, messages))
            except TextError as error:
                raise PromptError(f"preset chat: {error}; use preset qa or instruction_qa") from error
        return rows

    def _messages(self, question: str, *, folded: bool) -> Messages:
        turns = []
        for asked, answer in self.primer:
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        turns.append({"role": "user", "content": question})
        if self.instruction is None:
            return turns
        if not folded:
            return [{"role": "system", "content": self.instruction}, *turns]
        first = {"role": "user", "content": f"{self.instruction}\n\n{turns[0]['content']}"}
        return [first, *turns[1:]]


def load_prompts(preset: Preset, primer: str | None, instruction: str | None, folder: Path) -> Prompts:
    """The prompts that a spec declares; needs no model, so that flaws show before one is loaded.

    Args:
        preset: what stands before a question.
        primer: a file of question-answer pairs, relative to `folder`; None: the six that subvene ships.
        instruction: a file with the instruction; None: the one that subvene ships.
        folder: the spec's folder.

    Raises:
        PromptError: a file is missing or malformed; the message names its line.
    """
    pairs = parse_primer(*_read("primer", primer, folder))
    if preset == "qa":
        if instruction is not None:
            raise PromptError(
                f"instruction: preset qa has none, found {instruction!r}; leave it out, or use preset "
                "instruction_qa"
            )
        return Prompts(preset, pairs, None)
    text, name = _read("instruction", instruction, folder)
    if not text.strip():
        raise PromptError(f"{name}: expected an instruction, found an empty file")
    return Prompts(preset, pairs, text.strip())


def parse_primer(text: str, name: str = "primer") -> tuple[tuple[str, str], ...]:
    """(question, answer) of each pair: a line `Q: …`, a line `A: …`, blank lines between the pairs.

    Raises:
        PromptError: a line is something else; the message gives `name` and the line's number.
    """
    pairs: list[tuple[str, str]] = []
    question: str | None = None
    number = 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        expected = "Q: " if question is None else "A: "
        if not line and question is None:
            continue
        content = line.removeprefix(expected).strip() if line.startswith(expected) else ""
        if not content:
            raise PromptError(
                f"{name}:{number}: expected `{expected}…`"
                f"{'' if question is None else ' right below its question'}, found {line[:60]!r}"
            )
        if question is None:
            question = content
        else:
            pairs.append((question, content))
            question = None
    if question is not None:
        raise PromptError(f"{name}:{number}: expected `A: …` after the last question, found the file's end")
    if not pairs:
        raise PromptError(f"{name}: expected pairs of `Q: …` and `A: …`, found none")
    return tuple(pairs)


def _read(what: str, file: str | None, folder: Path) -> tuple[str, str]:
    """A text and what to call it in an error."""
    if file is None:
        shipped = importlib.resources.files("subvene.runner.data.truthfulqa").joinpath(f"{what}.txt")
        return shipped.read_text("utf-8"), f"{what}.txt"
    path = folder / file
    try:
        return read_text(path, "utf-8-sig"), str(path)
    except UnicodeDecodeError as error:
        raise PromptError(f"{what}: {path}: expected UTF-8 text: {error}") from error
    except OSError as error:
        raise PromptError(f"{what}: {path} cannot be read: {error.strerror or error}") from error


def _leading_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text, its beginning-of-sequence token mostly."""
    bare = tokenizer("Q: a", add_special_tokens=False)["input_ids"]
    full = tokenizer("Q: a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return list(full[:start])
    return []
