"""A conversation with an edited model: its turns, its settings, and what each answer's edit did.

There is no terminal here: `subvene chat` draws, reads lines and knows commands; this module answers.

Every answer is generated from the whole conversation, put into the chat template anew. So a position rule
sees what it sees anywhere else: all that came before the answer, earlier answers included, is prompt.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
import transformers

from subvene.runner.data.limits import context_length
from subvene.runner.data.reasoning import answer_of
from subvene.runner.data.text import TextError, pad_id_of, prompt_ids
from subvene.runner.edits.receipt import Receipt
from subvene.runner.files.storage import StorageError, atomic_file
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.generation import Settings, row_ends
from subvene.specs import SubveneError
from subvene.specs._flaws import nearest

Ending = Literal["finished", "max_new_tokens", "context", "stopped"]
OnText = Callable[[str], None]
Stop = Callable[[], bool]

_LARGEST_SEED = 2**63 - 1


class ChatError(SubveneError, ValueError):
    """A turn or a setting that the conversation cannot take; it is as it was before."""


@dataclass(frozen=True)
class Answer:
    """One answer and how it came about.

    Attributes:
        text: without special tokens.
        ids: the generated tokens, an end token included.
        ending: why it ends there: the model ended it, `max_new_tokens` were generated, the model's context
            was full, or the caller stopped it.
        receipt: what each intervention did; None where the edit was switched off.
    """

    text: str
    ids: tuple[int, ...]
    ending: Ending
    receipt: Receipt | None


class _Generation(TypedDict, total=False):
    """Keywords of `generate`."""

    max_new_tokens: int
    pad_token_id: int | None
    do_sample: bool
    temperature: float
    top_p: float
    streamer: transformers.TextStreamer
    stopping_criteria: transformers.StoppingCriteriaList


class ChatSession:
    """A conversation of several turns under one model's interventions.

    Attributes:
        model: the model and its interventions.
        strengths: in force, by intervention name; change them with `set_strength`.
        on: whether answers are edited; False is the model as it was loaded.
        system: the system prompt; change it with `set_system`.
        max_new_tokens: longest answer, in tokens.
        temperature: 0 is greedy; change it with `set_temperature`.
        top_p: sample from this much probability; None leaves it to the model's own settings.
        seed: of the sampling; change it with `set_seed`. Each turn has a seed of its own, made of this and
            the turn's number: the same conversation has the same answers, whatever was asked in between.
        last: the last answer that was kept; None before the first.
    """

    def __init__(
        self,
        model: IntervenedModel,
        *,
        strengths: Mapping[str, float | tuple[float, ...]] | None = None,
        system: str | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float | None = None,
        seed: int = 0,
    ) -> None:
        if getattr(model.tokenizer, "chat_template", None) is None:
            raise ChatError(
                f"{model.spec.model.name}: its tokenizer has no chat template, which a conversation needs; "
                "`subvene generate --raw` continues plain text"
            )
        self.model = model
        self.strengths: dict[str, float] = {}
        self.on = True
        self.system: str | None = None
        self.max_new_tokens = max_new_tokens
        self.top_p = top_p
        self.last: Answer | None = None
        self._turns: list[dict[str, str]] = []
        self._saved: Path | None = None
        for entry, declared in zip(model.intervenable.entries, model.spec.interventions, strict=True):
            strength = (strengths or {}).get(entry.name, declared.strength)
            if not isinstance(strength, int | float):
                raise ChatError(
                    f"{entry.name} declares {len(strength)} strengths, one a row of a batch, and a "
                    "conversation is one row; give one number in their place"
                )
            self.strengths[entry.name] = float(strength)
        for name in strengths or {}:
            self._known(name)
        self.set_temperature(temperature)
        self.set_seed(seed)
        self.set_system(system)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as the chat template gets it, the system prompt first."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *(dict(turn) for turn in self._turns)]

    @property
    def turns(self) -> int:
        """How many turns of the user have been answered."""
        return len(self._turns) // 2

    @property
    def context(self) -> int | None:
        """How many tokens the model takes, prompt and answer together; None if its config does not say."""
        return context_length(self.model.model)

    def say(self, text: str, *, on_text: OnText | None = None, stop: Stop | None = None) -> Answer:
        """Answer a turn of the user; both become part of the conversation.

        Args:
            text: the turn.
            on_text: is called with pieces of the answer while it is written.
            stop: is asked after every token whether to end the answer there; what there is of it is kept.

        Raises:
            ChatError: the turn does not fit the model's context or its template; nothing was generated.
            NotSteeredError: the answer was not edited as declared, and is not kept.
        """
        ids = self._prompt(text)
        answer = self._answer(ids, on_text, stop, edited=self.on)
        self._keep(text, ids, answer)
        return answer

    def compare(
        self, text: str, *, on_text: OnText | None = None, stop: Stop | None = None
    ) -> tuple[Answer, Answer]:
        """Answer a turn twice, without and with the edit; the edited answer becomes part of the conversation.

        One after the other rather than in one batch, so that the edited answer is the one that `say` gives,
        to the token, and so that both are sampled with the same random numbers.

        Args:
            text: the turn.
            on_text: is called with pieces of the edited answer.
            stop: as for `say`; if it stops the first answer, there is no second.

        Returns:
            The answers without and with the edit.

        Raises:
            ChatError: as for `say`; or the edit is switched off, or the first answer was stopped.
        """
        if not self.on:
            raise ChatError("nothing to compare: the edit is off")
        ids = self._prompt(text)
        plain = self._answer(ids, None, stop, edited=False)
        if plain.ending == "stopped":
            raise ChatError("stopped before the edited answer; this turn is not part of the conversation")
        edited = self._answer(ids, on_text, stop, edited=True)
        self._keep(text, ids, edited)
        return plain, edited

    def set_strength(self, value: float, name: str | None = None) -> str:
        """Set an intervention's strength from the next answer on.

        Args:
            value: the strength; 0 leaves the model alone.
            name: which intervention; None if there is only one.

        Returns:
            Its name.
        """
        if name is None:
            if len(self.strengths) != 1:
                raise ChatError(f"there are several interventions; name one of: {', '.join(self.strengths)}")
            (name,) = self.strengths
        self._known(name)
        if not math.isfinite(value):
            raise ChatError(f"a strength must be a finite number, found {value}")
        self.strengths[name] = float(value)
        return name

    def set_system(self, text: str | None) -> None:
        """Set or remove the system prompt, for the whole conversation from the next answer on."""
        before, self.system = self.system, text
        try:
            if text is not None:
                self._check_system(text)
        except SubveneError:
            self.system = before
            raise

    def set_temperature(self, value: float) -> None:
        """Sample at this temperature from the next answer on; 0 is greedy."""
        if not (math.isfinite(value) and value >= 0):
            raise ChatError(f"a temperature must be a number from 0 (greedy) up, found {value}")
        self.temperature = float(value)

    def set_seed(self, value: int) -> None:
        """Set the seed of the sampling from the next answer on."""
        if not 0 <= value <= _LARGEST_SEED:
            raise ChatError(f"a seed must be a whole number from 0 to {_LARGEST_SEED}, found {value}")
        self.seed = value

    def reset(self) -> int:
        """Forget the conversation; the settings stay, the system prompt among them.

        Returns:
            How many turns of the user were forgotten.
        """
        forgotten = self.turns
        self._turns.clear()
        # The file holds the conversation that is forgotten here: the next one must not replace it.
        self.last = self._saved = None
        return forgotten

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Write the conversation as one line of JSONL, `{"messages": […]}`; atomically.

        A file of this session's own is replaced; any other that exists is left alone.

        Returns:
            The file.

        Raises:
            ChatError: there is no conversation, or the file exists or cannot be written.
        """
        if not self._turns:
            raise ChatError("there is no conversation to save yet")
        path = Path(os.path.abspath(Path(file).expanduser()))
        if os.path.lexists(path) and path != self._saved:
            raise ChatError(f"{path} exists and is not of this session; choose another name")
        line = json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n"
        try:
            with atomic_file(path) as stream:
                stream.write(line)
        except StorageError as error:
            raise ChatError(str(error)) from error
        except OSError as error:
            raise ChatError(f"{path}: cannot be written ({error.strerror or error})") from error
        self._saved = path
        return path

    def _known(self, name: str) -> None:
        if name not in self.strengths:
            hint = nearest(name, self.strengths)
            raise ChatError(
                f"no intervention is called {name!r}; "
                + (f"did you mean {hint!r}?" if hint else f"there are: {', '.join(self.strengths)}")
            )

    def _keep(self, text: str, prompt: list[int], answer: Answer) -> None:
        # What the next turn is read after is the answer: the template may have opened a block of reasoning,
        # whose end alone stands in the text.
        start, said = answer_of(self.model.tokenizer, prompt, answer.ids)
        self._turns += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": said if start else answer.text},
        ]
        self.last = answer

    def _prompt(self, text: str) -> list[int]:
        """Token ids of the conversation and a new turn, which leave room for at least one more token."""
        if not text.strip():
            raise ChatError("an empty turn")
        if not _is_unicode(text):
            raise ChatError("the turn is not valid UTF-8")
        with _template_errors():
            ids = prompt_ids(self.model.tokenizer, [*self.messages, {"role": "user", "content": text}])
        if self.context is not None and len(ids) >= self.context:
            raise ChatError(
                f"the conversation with this turn is {len(ids)} tokens long, and the model takes "
                f"{self.context}, its answer included; nothing was cut away and nothing answered: reset the "
                "conversation, or say less"
            )
        return ids

    def _check_system(self, text: str) -> None:
        if not _is_unicode(text):
            raise ChatError("the system prompt is not valid UTF-8")
        messages = [*self.messages, {"role": "user", "content": "?"}]
        with _template_errors():
            prompt_ids(self.model.tokenizer, messages)

    @torch.no_grad()
    def _answer(self, ids: list[int], on_text: OnText | None, stop: Stop | None, *, edited: bool) -> Answer:
        m, room = self.model, math.inf if self.context is None else self.context - len(ids)
        kwargs: _Generation = {
            "max_new_tokens": int(min(self.max_new_tokens, room)),
            "pad_token_id": pad_id_of(m.tokenizer),
            "do_sample": self.temperature > 0,
        }
        if self.temperature > 0:
            kwargs["temperature"] = self.temperature
            if self.top_p is not None:
                kwargs["top_p"] = self.top_p
            torch.manual_seed((self.seed + self.turns) % _LARGEST_SEED)
        if on_text is not None:
            kwargs["streamer"] = _Streamer(m.tokenizer, on_text)
        criterion = None if stop is None else _Stopper(stop)
        if criterion is not None:
            kwargs["stopping_criteria"] = transformers.StoppingCriteriaList([criterion])
        try:
            with contextlib.nullcontext() if edited else m.disabled():
                output = m.generate_ids(
                    torch.tensor([ids]), strengths=self.strengths if edited else None, **kwargs
                )
        except torch.OutOfMemoryError as error:
            raise ChatError(
                f"the device has too little memory for this answer after {len(ids)} tokens of conversation; "
                "nothing was cut away: reset the conversation"
            ) from error
        sequence = output if isinstance(output, torch.Tensor) else output.sequences
        new = tuple(sequence[0, len(ids) :].tolist())
        ending: Ending
        if new and new[-1] in row_ends(Settings(m.model, **kwargs)):
            ending = "finished"
        elif criterion is not None and criterion.stopped:
            ending = "stopped"
        elif len(new) >= self.max_new_tokens:
            ending = "max_new_tokens"
        else:
            ending = "context" if len(new) == room else "finished"
        return Answer(
            text=m.tokenizer.decode(new, skip_special_tokens=True),
            ids=new,
            ending=ending,
            receipt=m.receipt if edited and not m.is_disabled else None,
        )


class _Streamer(transformers.TextStreamer):
    """Hands over text as it becomes certain, instead of printing it."""

    def __init__(self, tokenizer: Any, on_text: OnText) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._on_text(text)


class _Stopper(transformers.StoppingCriteria):
    """Ends the answer when asked to, after a whole token: so the run still leaves its receipt."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self.stopped = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.stopped = self.stopped or self._stop()
        return torch.full((input_ids.shape[0],), self.stopped, device=input_ids.device)


@contextlib.contextmanager
def _template_errors() -> Iterator[None]:
    """What cannot be put into the chat template, as an error of the conversation."""
    try:
        yield
    except TextError as error:
        raise ChatError(str(error)) from error


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # surrogates: what was typed were bytes of another encoding
        return False
    return True
