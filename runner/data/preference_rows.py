"""Rows as preferences: a prompt, the answer that is wanted and the one that is not, in any usual form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pydantic import JsonValue

from subvene.runner.data.text import Messages
from subvene.specs import SubveneError
from subvene.specs.columns import Meaning, Taken, Used, asked, messages_of, says_again, take, with_system
from subvene.specs.preferences import TriplesSpec
from subvene.specs.rows import Row, short

_WANTED: frozenset[Meaning] = frozenset(
    {"prompt", "input", "history", "system", "messages", "response", "chosen", "rejected"}
)


class PreferenceError(SubveneError, ValueError):
    """Preferences cannot be read; the message names the file and line, or the dataset and row."""


@dataclass(frozen=True)
class Preference:
    """A prompt, the answer that is wanted and the one that is not.

    Attributes:
        prompt: a user's turn or raw text, or messages with `role` and `content`.
        chosen: the wanted answer.
        rejected: the unwanted one; of a completion, which has none, the wanted one.
    """

    prompt: str | Messages
    chosen: str
    rejected: str

    @property
    def key(self) -> str:
        """What names the question: a hash of the prompt."""
        return hashlib.sha256(json.dumps(self.prompt, ensure_ascii=False).encode()).hexdigest()[:16]


class Preferences(list[Preference]):
    """Preferences, and which columns they were read from."""

    def __init__(self, preferences: Iterable[Preference], used: Used) -> None:
        super().__init__(preferences)
        self.used = used


def preferences_of(
    rows: Iterable[Row], spec: TriplesSpec, source: str, *, completions: bool = False
) -> Preferences:
    """Rows, each with where it stands, as preferences.

    Args:
        rows: of a file, a dataset, or handed over.
        spec: names their columns.
        source: what an error calls all of them.
        completions: whether a row may also be a prompt with a completion, and no unwanted answer.

    Raises:
        PreferenceError: a row is none, or there are no rows.
    """
    used = Used()
    found = Preferences(
        (_preference(row, where, spec, used, completions) for where, row in islice(rows, spec.limit)), used
    )
    if not found:
        raise PreferenceError(f"{source}: holds no preference")
    return found


def _preference(row: Any, where: str, spec: TriplesSpec, used: Used, completions: bool) -> Preference:
    if not isinstance(row, Mapping):
        raise PreferenceError(f"{where}: expected an object, found {short(row)}")
    # A name that is only the default is one of several that people use.
    chosen: dict[Meaning, str | None] = {
        meaning: getattr(spec, meaning) if meaning in spec.model_fields_set else None
        for meaning in ("prompt", "chosen", "rejected")
    }
    if chosen["prompt"] is not None and chosen["prompt"] not in row:
        chosen["prompt"] = None  # it may stand in the two lists of messages
    taken = take(row, where, _WANTED, chosen=chosen, fail=PreferenceError)
    alone = completions and "rejected" not in taken
    if alone:
        _complete(taken)
    for meaning in ("chosen", "rejected"):
        if meaning not in taken:
            raise PreferenceError(
                f"{where}: expected the field {getattr(spec, meaning)!r}, found: {', '.join(map(str, row))}"
            )
    before, wanted = _answer(taken, where, "chosen")
    other, unwanted = _answer(taken, where, "rejected")
    _check_response(taken, where, (wanted, unwanted))
    prompt = _prompt(taken, where, before, other, spec)
    if wanted == unwanted and not alone:
        names = " and ".join(taken.columns[meaning] for meaning in ("chosen", "rejected"))
        raise PreferenceError(f"{where}: {names} are the same answer")
    if alone:
        del taken.columns["rejected"]
    used.note(taken)
    # A lone user's turn is text, which may also stay without a template.
    if len(prompt) == 1 and prompt[0]["role"] == "user" and isinstance(taken.get("prompt"), str):
        return Preference(str(prompt[0]["content"]), wanted, unwanted)
    return Preference(
        [{name: message[name] for name in ("role", "content")} for message in prompt], wanted, unwanted
    )


def _complete(taken: Taken) -> None:
    """A prompt with its completion, as a wanted answer that stands on both sides."""
    if "chosen" not in taken and "response" in taken:
        taken["chosen"], taken.columns["chosen"] = taken.pop("response"), taken.columns.pop("response")
    if "chosen" in taken:
        taken["rejected"], taken.columns["rejected"] = taken["chosen"], taken.columns["chosen"]


def _prompt(
    taken: Taken, where: str, before: Messages, other: Messages, spec: TriplesSpec
) -> list[dict[str, JsonValue]]:
    """The messages of a row's prompt: of a column of its own, or of what stands before both answers."""
    if "prompt" not in taken and "messages" in taken and not before and not other:
        taken["prompt"], taken.columns["prompt"] = taken.pop("messages"), taken.columns.pop("messages")
    if "messages" in taken:
        # The conversation with the wanted answer, as some data sets give it beside the pair.
        if not says_again(
            taken["messages"], [taken["chosen"]] if isinstance(taken["chosen"], str) else _said(taken)
        ):
            raise PreferenceError(f"{where}: {taken.columns['messages']}: says what the two answers do not")
        taken.drop("messages")
    if "prompt" in taken:
        value = taken["prompt"]
        if not isinstance(value, str | list) or not value:
            place = f"{where}: {taken.columns['prompt']}"
            raise PreferenceError(f"{place}: expected text or messages, found {short(value)}")
        return asked(taken, where, PreferenceError)
    if not before:
        raise PreferenceError(
            f"{where}: expected the field {spec.prompt!r}, found: {', '.join(taken.columns.values())}"
        )
    if before != other:
        raise PreferenceError(
            f"{where}: {taken.columns['chosen']} and {taken.columns['rejected']} answer different prompts; "
            "give the prompt a field of its own"
        )
    for meaning in ("input", "history"):
        if meaning in taken:
            raise PreferenceError(
                f"{where}: {taken.columns[meaning]}: belongs to a prompt, and there is none"
            )
    return with_system([dict(message) for message in before], taken, where, PreferenceError)


def _said(taken: Taken) -> list[str]:
    chosen = taken["chosen"]
    return [chosen] if isinstance(chosen, str) else [message["content"] for message in chosen]


def _check_response(taken: Taken, where: str, answers: tuple[str, str]) -> None:
    """A response beside two answers is one of them."""
    if "response" not in taken:
        return
    if str(taken["response"]).strip() not in [answer.strip() for answer in answers]:
        raise PreferenceError(
            f"{where}: {taken.columns['response']}: a response beside the two answers, and neither of them; "
            "take the column out, or say which are meant with `chosen` and `rejected`"
        )
    taken.drop("response")


def _answer(taken: Taken, where: str, meaning: Meaning) -> tuple[Messages, str]:
    """What stands before an answer in its own field (nothing, for text), and the answer."""
    value, place = taken[meaning], f"{where}: {taken.columns[meaning]}"
    if isinstance(value, str) and value.strip():
        return [], value
    if isinstance(value, Mapping):  # one message, as ShareGPT has it
        value = [value]
    if not isinstance(value, list) or not value:
        raise PreferenceError(f"{place}: expected text or messages, found {short(value)}")
    *before, last = messages_of(value, place, PreferenceError)
    if last["role"] != "assistant" or not last["content"].strip():
        raise PreferenceError(f"{place}: expected an assistant's answer as the last message")
    return before, last["content"]
