"""Where the tokens of a text stand in a prompt: position rules that name a field of the data, or a span.

Found in what the token ids say, whoever made them: the prompt is decoded, and each token takes up the
characters that it adds. A token that shares a character with the text belongs to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from subvene.interventions import Tokens
from subvene.runner.edits.positions import PositionError
from subvene.specs import FieldTokens, LastOf
from subvene.specs.positions import TextPositions

DataRow = Mapping[str, str]
"""Columns of the data of one row of a batch, by name."""


def text_table(
    rule: TextPositions,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    data: Sequence[DataRow] | None,
    *,
    what: str,
) -> torch.Tensor:
    """Bool[rows, positions]: the tokens of each prompt that `rule` names.

    Args:
        rule: names a text.
        tokenizer: decodes the prompts.
        prompts: token ids of each row's prompt, without padding.
        data: the columns of each row; None: there are none.
        what: whose prompts these are, for errors.

    Raises:
        PositionError: naming the row in which the field is not there, or its text holds nothing, stands
            nowhere or stands twice.
    """
    if tokenizer is None:
        raise PositionError(
            f"{what}: positions {in_words(rule)} are found in text, and there is no tokenizer to read the "
            "token ids with; pass one to from_spec"
        )
    table = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.bool)
    for row, ids in enumerate(prompts):
        places = places_of(rule, tokenizer, ids, None if data is None else data[row], f"{what}, row {row}")
        table[row, places] = True
    return table


def places_of(
    rule: TextPositions, tokenizer: Any, ids: Sequence[int], data: DataRow | None, where: str
) -> list[int]:
    """The tokens of one prompt that `rule` names, ascending; see `text_table`."""
    named = rule.text if isinstance(rule, LastOf) else rule
    text = _text_of(named, data, where)
    found = _tokens_of(text, tokenizer, ids, f"{where}: {in_words(named)}")
    return found[-1:] if isinstance(rule, LastOf) else found


def in_words(rule: TextPositions) -> str:
    """`{field: subject}`, as a file has it."""
    if isinstance(rule, LastOf):
        return f"{{last_of: {in_words(rule.text)}}}"
    return f"{{field: {rule.field}}}" if isinstance(rule, FieldTokens) else f"{{span: {rule.span!r}}}"


def prompts_of(tokens: Tokens, ids: torch.Tensor) -> list[list[int]]:
    """The token ids of each row's prompt, of a call that carries whole sequences [rows, slots]."""
    if tokens.prompt_length is None:
        raise PositionError(
            "positions that name a text are looked for in the prompt, and where those end is not known: "
            "pass prompt_lengths=[tokens of each row's prompt]"
        )
    is_prompt = tokens.real & (tokens.index < tokens.prompt_length.unsqueeze(1))
    return [row[keep].tolist() for row, keep in zip(ids, is_prompt.to(ids.device), strict=True)]


def _text_of(rule: Any, data: DataRow | None, where: str) -> str:
    if not isinstance(rule, FieldTokens):
        return str(rule.span)
    if data is None or rule.field not in data:
        there = (
            "none was given (`rows=`, a mapping for each row)"
            if not data
            else f"there are: {', '.join(data)}"
        )
        raise PositionError(f"{where}: expected a column {rule.field!r}; {there}")
    value = data[rule.field]
    if not isinstance(value, str):
        raise PositionError(f"{where}: column {rule.field!r} holds {value!r:.60}, expected a text")
    return value


def _tokens_of(text: str, tokenizer: Any, ids: Sequence[int], where: str) -> list[int]:
    if not text.strip():
        raise PositionError(f"{where} is {text!r}, which holds no token")
    ends = _ends(tokenizer, ids)
    whole = _decoded(tokenizer, ids)
    starts = list(_occurrences(text, whole))
    if len(starts) != 1:
        shown = whole if len(whole) <= 160 else f"{whole[:80]} … {whole[-80:]}"
        count = "does not stand" if not starts else f"stands {len(starts)} times"
        raise PositionError(f"{where}: {text!r} {count} in the prompt {shown!r}; expected once")
    first = starts[0] + len(text) - len(text.lstrip())
    last = starts[0] + len(text.rstrip())
    found = []
    for i, end in enumerate(ends):
        begin = ends[i - 1] if i else 0
        # A token that ends amid a character adds nothing to the text, and belongs to that character.
        end = next((later for later in ends[i:] if later > begin), end)
        if begin < last and end > first:
            found.append(i)
    if not found:
        raise PositionError(f"{where}: {text!r} has no token of its own in the prompt")
    return found


def _occurrences(text: str, whole: str) -> Iterable[int]:
    start = whole.find(text)
    while start >= 0:
        yield start
        start = whole.find(text, start + 1)


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _ends(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """How many characters of the decoded text the tokens up to each one make."""
    whole = _decoded(tokenizer, ids)
    ends = []
    for count in range(1, len(ids) + 1):
        part = _decoded(tokenizer, ids[:count])
        shared = next((i for i, (a, b) in enumerate(zip(part, whole, strict=False)) if a != b), None)
        ends.append(min(len(part), len(whole)) if shared is None else shared)
    return ends
