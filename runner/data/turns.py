"""The assistant's turns of transcripts: what the model had read, and the tokens of each turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from subvene.runner.data.limits import TooLongError, context_length
from subvene.runner.data.rendered import conversation
from subvene.runner.data.span import Text
from subvene.runner.data.text import TextError, prompt_ids, reply_ids
from subvene.runner.data.transcripts import Transcript, TranscriptError, turns_in


@dataclass(frozen=True)
class Turn:
    """An assistant's turn.

    Attributes:
        transcript: index of its transcript.
        turn: which of the assistant's turns it is, from 0.
        text: what it says.
        read: the tokens that the model had read when it spoke, then those of the turn, which are the span.
        score: of the turn itself; None if only the row has one, or nobody gave any.
    """

    transcript: int
    turn: int
    text: str
    read: Text
    score: float | None


def turns_of(tokenizer: Any, transcripts: Sequence[Transcript], *, chat: bool | None = None) -> list[Turn]:
    """Every assistant's turn, after what the model had read when it spoke.

    The prompt of a turn is made as `generate` makes it, and the turn is tokenised on its own, so that the
    boundary is exact and no token of the template is among the span.

    Args:
        tokenizer: the model's.
        transcripts: the conversations.
        chat: False for prompts without a chat template.

    Raises:
        TranscriptError: a conversation has no assistant's turn or begins with one, or the chat template
            refuses it.
    """
    turns = []
    for index, transcript in enumerate(transcripts):
        messages = _messages_of(tokenizer, transcript)
        if not turns_in(messages):
            raise TranscriptError(f"{transcript.where}: there is no turn of the role `assistant`")
        for number, at in enumerate(turns_in(messages)):
            before, message = messages[:at], messages[at]
            prompt = _prompt_ids(tokenizer, before, transcript.where, chat)
            try:
                before_it, response = reply_ids(tokenizer, prompt, message["content"])
            except TextError as error:
                raise TranscriptError(f"{transcript.where}: {error}") from error
            ids = (*before_it, *response)
            read = Text(ids, len(before_it), len(ids))
            turns.append(Turn(index, number, message["content"], read, transcript.scores.get(at)))
    return turns


def refuse_long(
    model: Any, turns: Sequence[Turn], transcripts: Sequence[Transcript], lengths: Sequence[int] | None = None
) -> None:
    """Refuse turns that the model cannot read whole.

    Args:
        model: the model.
        turns: the turns.
        transcripts: theirs.
        lengths: tokens that are read of each, with what precedes it; default: all.

    Raises:
        TooLongError: naming the row, how long it is, and how many more there are.
    """
    lengths = [len(turn.read.ids) for turn in turns] if lengths is None else lengths
    longest = context_length(model)
    long = [i for i, length in enumerate(lengths) if longest is not None and length > longest]
    if long:
        where = transcripts[turns[long[0]].transcript].where
        raise TooLongError(
            f"{where}: turn {turns[long[0]].turn} ends at token {lengths[long[0]]} of its conversation, and "
            f"this model reads at most {longest}; so do {len(long) - 1} further turns of {len(turns)}: leave "
            "these out, or shorten them"
        )


def _messages_of(tokenizer: Any, transcript: Transcript) -> tuple[dict[str, str], ...]:
    """The messages; of a row that is one text, those that the template made it of."""
    if transcript.text is None:
        return transcript.messages
    try:
        found = conversation(tokenizer, transcript.text)
    except TextError as error:
        raise TranscriptError(f"{transcript.where}: {error}") from error
    if found is None:
        raise TranscriptError(
            f"{transcript.where}: the text is no conversation that this model's chat template makes, and "
            "there is no other column that could be one"
        )
    return tuple(found)


def _prompt_ids(tokenizer: Any, before: Sequence[dict[str, str]], where: str, chat: bool | None) -> list[int]:
    if not before:
        raise TranscriptError(
            f"{where}: the conversation begins with the assistant, and there is nothing that it answers; "
            "leave that turn out"
        )
    # A lone user's turn is a prompt like any other, also for a model without a chat template.
    alone = len(before) == 1 and before[0]["role"] == "user"
    if chat is False and not alone:
        raise TranscriptError(f"{where}: a conversation of several messages needs the chat template")
    try:
        return prompt_ids(tokenizer, before[0]["content"] if alone else before, chat=chat)
    except TextError as error:
        raise TranscriptError(f"{where}: {error}") from error
