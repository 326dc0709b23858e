"""What the columns of a row mean: the names that the formats people have give to the same things.

Chat messages (`messages`, `conversation`), ShareGPT (`conversations` of `from` and `value`), Alpaca
(`instruction`, `input`, `output`), preference pairs (`prompt`, `chosen`, `rejected`), the tables of persona
vectors (`question`, `prompt`, `answer`), and plain prompts with responses. A column that is known is used, or
says again what another one says, or the row is refused: what a reader leaves out in silence is what its
numbers are wrong by. Columns that nobody knows are left alone, and named.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from subvene.specs.rows import Fail, RowsError, parsed, short

Meaning = Literal[
    "messages",
    "prompt",
    "input",
    "history",
    "system",
    "response",
    "reasoning",
    "text",
    "chosen",
    "rejected",
    "score",
    "tools",
    "media",
]
_NAMES: dict[Meaning, str] = {
    "messages": "messages conversation conversations dialog dialogue chat",
    "prompt": "prompt question instruction query user_prompt",
    "input": "input context",
    "history": "history",
    "system": "system system_prompt system_message",
    "response": "response answer completion output reply",
    "reasoning": "reasoning reasoning_content thinking",
    "text": "text",
    # The last ones are those of CAA's A/B questions (Rimsky et al., 2024).
    "chosen": "chosen positive answer_matching_behavior",
    "rejected": "rejected negative answer_not_matching_behavior",
    "score": "score",
    "tools": "tools functions",
    "media": "image images audio video",
}
KNOWN: dict[str, Meaning] = {name: meaning for meaning, names in _NAMES.items() for name in names.split()}
"""The meaning of a column by its name, in lower case with underscores."""
_WORDS: dict[Meaning, str] = {
    "messages": "a whole conversation",
    "prompt": "a prompt",
    "input": "what an instruction is about",
    "history": "earlier turns",
    "system": "a system prompt",
    "response": "a response",
    "reasoning": "the reasoning before a response",
    "text": "a whole text",
    "chosen": "the wanted one of two answers",
    "rejected": "the unwanted one of two answers",
    "score": "a score",
    "tools": "the tools that a model may call",
    "media": "what is no text",
}
_ADVICE: dict[Meaning, str] = {
    "tools": "declare them once, in `chat_template_kwargs: {tools: …}` under `model:`, and drop the column",
    "media": "only text can be read",
    "chosen": "say which answer is meant, as the response",
    "rejected": "say which answer is meant, as the response",
}
# Whoever says which column is the one says that the others are not meant.
_INSTEAD: dict[Meaning, frozenset[Meaning]] = {
    "messages": frozenset(
        {"prompt", "input", "history", "response", "reasoning", "text", "chosen", "rejected"}
    ),
    "prompt": frozenset({"messages", "text"}),
    "response": frozenset({"messages", "text", "chosen", "rejected"}),
}
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
"""ShareGPT's names of who speaks, and the roles of chat messages."""


class Taken(dict[Meaning, Any]):
    """What one row says, by meaning.

    Attributes:
        columns: meaning → the column that says it.
        again: columns that say again what another one says.
        unread: columns that nobody knows, or that are not meant.
    """

    def __init__(self) -> None:
        super().__init__()
        self.columns: dict[Meaning, str] = {}
        self.again: list[str] = []
        self.unread: list[str] = []

    def drop(self, meaning: Meaning) -> None:
        """Say of a meaning's column that it only says again what others say."""
        del self[meaning]
        self.again.append(self.columns.pop(meaning))


@dataclass
class Used:
    """Which columns of some rows were used, and which were not.

    Attributes:
        read: meaning → the columns that were read as it, in the order in which they were met.
        again: columns that said again what another one says.
        unread: columns that nobody knows, or that were not meant.
    """

    read: dict[str, list[str]] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def note(self, taken: Taken) -> None:
        """Take up how one more row was read."""
        for meaning, column in taken.columns.items():
            _add(self.read.setdefault(meaning, []), [column])
        _add(self.again, taken.again)
        _add(self.unread, taken.unread)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"read": {**self.read}, "said_again": [*self.again], "not_read": [*self.unread]}

    def in_words(self) -> str:
        """A line for people."""
        parts = [f"{meaning} from {', '.join(columns)}" for meaning, columns in self.read.items()]
        if self.again:
            parts.append(f"said again in {', '.join(self.again)}")
        if self.unread:
            parts.append(f"not read: {', '.join(self.unread)}")
        return "; ".join(parts)


def take(
    row: Any,
    where: str,
    wanted: Collection[Meaning],
    *,
    chosen: Mapping[Meaning, str | None] | None = None,
    saying: Mapping[Meaning, str] | None = None,
    fail: Fail = RowsError,
) -> Taken:
    """What a row says, by meaning; empty columns say nothing, but for an empty response.

    Args:
        row: a mapping of columns.
        where: where it stands.
        wanted: the meanings that its reader can use.
        chosen: meaning → the column that the caller says has it; None: the usual names tell.
        saying: meaning → how a caller says so; left out: by an option of that name.
        fail: makes an error.

    Raises:
        RowsError: or what `fail` makes: it is no row, a chosen column is missing or chosen twice, two columns
            of one meaning differ, or a column has a meaning that its reader cannot use.
    """
    if not isinstance(row, Mapping):
        raise fail(f"{where}: expected a row with columns, found {short(row)}")
    how = _options if saying is None else saying.__getitem__
    named = {meaning: name for meaning, name in (chosen or {}).items() if name is not None}
    by_name: dict[str, Meaning] = {}
    for meaning, name in named.items():
        if (other := by_name.setdefault(name, meaning)) != meaning:
            raise fail(
                f"{where}: column {name!r} is said to be two things, with {how(other)} and {how(meaning)}; "
                f"there is: {_listed(row)}"
            )
        if name not in row:
            raise fail(
                f"{where}: no column {name!r}; there is: {_listed(row)} (say which with {how(meaning)})"
            )
    excused = {other for meaning in named for other in _INSTEAD.get(meaning, ())}
    taken = Taken()
    found: dict[Meaning, dict[str, Any]] = {}
    for column, value in row.items():
        is_meant = next((meaning for meaning, name in named.items() if name == column), None)
        means = is_meant or KNOWN.get(_normal(column))
        if means is None or (is_meant is None and (means in named or means in excused)):
            taken.unread.append(str(column))
            continue
        # A value of numpy or of pandas is one of Python's own.
        found.setdefault(means, {})[str(column)] = value.tolist() if hasattr(value, "tolist") else value
    if "input" in found and not found.keys() & {"prompt", "messages", "text", "chosen"}:
        found["prompt"] = found.pop("input")
    for meaning, columns in found.items():
        column = _one(columns, meaning, where, taken, fail, how)
        if column is None:
            continue
        if meaning not in wanted and meaning == "score":
            taken.unread.append(column)  # says something of the row, and nothing that is read
            continue
        if meaning not in wanted:
            advice = _ADVICE.get(meaning, "rename the column or take it out, if it does not matter")
            raise fail(f"{where}: {column}: {_WORDS[meaning]} cannot be used here; {advice}")
        taken[meaning], taken.columns[meaning] = columns[column], column
    return taken


def missing(row: Mapping[str, Any], where: str, expected: str, fail: Fail = RowsError) -> Exception:
    """The error of a row without a column that is needed."""
    return fail(f"{where}: expected {expected}; the columns are: {_listed(row)}")


def text_of(value: Any, where: str, fail: Fail = RowsError, *, empty: bool = False) -> str:
    """A text, which may be empty only if the caller says so."""
    if not isinstance(value, str):
        raise fail(f"{where}: expected text, found {short(value)}")
    if not empty and not value.strip():
        raise fail(f"{where}: expected non-empty text, found {short(value)}")
    return value


def messages_of(value: Any, where: str, fail: Fail = RowsError) -> list[dict[str, Any]]:
    """A conversation as objects with `role` and `content`, in whichever of the usual forms it stands.

    A message's `score` is kept; its `reasoning_content` is put before its content, as the block that it is.

    Raises:
        RowsError: or what `fail` makes: naming the message.
    """
    if isinstance(value, str):  # a field of a CSV file
        value = parsed(value, where, fail)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise fail(f"{where}: expected text or a list of messages, not empty, found {short(value)}")
    return [_message(message, f"{where}[{i}]", fail) for i, message in enumerate(value)]


def asked(taken: Taken, where: str, fail: Fail = RowsError) -> list[dict[str, Any]]:
    """The messages of a prompt that stands in a column of its own, with what belongs to it."""
    place = f"{where}: {taken.columns['prompt']}"
    prompt, about = taken["prompt"], taken.get("input")
    if isinstance(prompt, str):
        text = text_of(prompt, place, fail)
        if about is not None:
            text = f"{text}\n\n{text_of(about, where + ': ' + taken.columns['input'], fail)}"
        before = [{"role": "user", "content": text}]
    elif about is not None:
        raise fail(f"{where}: {taken.columns['input']}: cannot be added to a prompt of messages")
    else:
        before = messages_of(prompt, place, fail)
    return with_system([*_earlier(taken.get("history"), where, fail), *before], taken, where, fail)


def with_system(
    messages: list[dict[str, Any]], taken: Taken, where: str, fail: Fail = RowsError
) -> list[dict[str, Any]]:
    """The conversation with a system prompt of a column of its own."""
    if "system" not in taken:
        return messages
    column = taken.columns["system"]
    text = text_of(taken["system"], f"{where}: {column}", fail)
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"].strip() != text.strip():
            raise fail(f"{where}: {column}: the conversation has another system prompt of its own")
        taken.drop("system")
        return messages
    return [{"role": "system", "content": text}, *messages]


def says_again(value: Any, texts: Sequence[str], *, rendered: bool = False) -> bool:
    """Whether a value is one of some texts, or messages of which each is.

    Args:
        value: text, or messages in whichever form.
        texts: what has been said.
        rendered: whether a text also counts that holds one and more, as one that a template made does.
    """
    if isinstance(value, str):
        said = [text.strip() for text in texts]
        return value.strip() in said or (rendered and any(text and text in value for text in said))
    try:
        contents = [message["content"] for message in messages_of(value, "")]
    except RowsError:
        return False
    return all(says_again(text, texts, rendered=rendered) for text in contents)


def _options(meaning: Meaning) -> str:
    """How the command line says which column is meant."""
    return f"--{meaning}"


def _one(
    columns: Mapping[str, Any],
    meaning: Meaning,
    where: str,
    taken: Taken,
    fail: Fail,
    how: Callable[[Meaning], str],
) -> str | None:
    """Which of several columns of one meaning is read: the longest, where the others say the same.

    A prompt may also stand inside its rendering, as in the tables of persona vectors. Of anything else a
    part is another thing: "No" is not "No, never", and "He is" is not "She is".
    """
    telling = {name: value for name, value in columns.items() if not _is_empty(value)}
    if not telling:
        # An empty answer is an answer, and is left out and counted where it cannot be read.
        kept = next(iter(columns)) if meaning in ("response", "chosen", "rejected", "prompt") else None
        taken.unread += [column for column in columns if column != kept]
        return kept
    fullest = max(telling, key=lambda name: len(_flat(telling[name])))
    for name, value in telling.items():
        if name == fullest:
            continue
        if not _same(value, telling[fullest], meaning):
            raise fail(
                f"{where}: {name} and {fullest} are both {_WORDS[meaning]}, and say different things; say "
                f"which is meant ({how(meaning)}), or rename the other"
            )
        taken.again.append(name)
    taken.unread += [name for name in columns if name not in telling]
    return fullest


def _message(message: Any, where: str, fail: Fail) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        message = {}
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if not isinstance(role, str) or not role or not isinstance(content, str):
        raise fail(
            f"{where}: expected an object with the texts `role` and `content` (or `from` and `value`), "
            f"found {short(message)}"
        )
    for name in ("tool_calls", "function_call"):
        if message.get(name):
            raise fail(f"{where}: {name}: calls of tools cannot be read; leave the conversation out")
    reasoning = message.get("reasoning_content") or message.get("reasoning") or message.get("thinking")
    if isinstance(reasoning, str) and reasoning.strip():
        content = f"<think>\n{reasoning.strip()}\n</think>\n\n{content}"
    read = {"role": ROLES.get(role.lower(), role), "content": content}
    return read | ({"score": message["score"]} if "score" in message else {})


def _earlier(history: Any, where: str, fail: Fail) -> list[dict[str, Any]]:
    """Earlier turns: messages, or pairs of what the user and the assistant said."""
    if not history:
        return []
    if isinstance(history, str):
        history = parsed(history, f"{where}: history", fail)
    if isinstance(history, Sequence) and all(isinstance(pair, list | tuple) for pair in history):
        texts = [text_of(text, f"{where}: history", fail, empty=True) for pair in history for text in pair]
        if len(texts) % 2 == 0:
            return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return messages_of(history, f"{where}: history", fail)


def _add(names: list[str], more: Sequence[str]) -> None:
    names += [name for name in dict.fromkeys(more) if name not in names]


def _same(value: Any, fullest: Any, meaning: Meaning) -> bool:
    """Whether one value of a meaning says what another, not shorter one does."""
    if _canonical(value) == _canonical(fullest):
        return True
    if meaning != "prompt" or not isinstance(value, str):
        return False
    said = _canonical(fullest)
    return any(value.strip() in text for text in ([said] if isinstance(said, str) else [t for _, t in said]))


def _canonical(value: Any) -> str | list[tuple[str, str]]:
    """Messages in whichever form as roles and contents, and anything else as text."""
    try:
        return [(message["role"], message["content"].strip()) for message in messages_of(value, "")]
    except RowsError:
        return _flat(value).strip()


def _flat(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)


def _is_empty(value: Any) -> bool:
    return value is None or value == [] or value == {} or (isinstance(value, str) and not value.strip())


def _normal(column: Any) -> str:
    return "_".join(str(column).lower().replace("-", " ").split())


def _listed(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"
