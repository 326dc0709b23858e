"""What a spec says of conversations with its model; the model's tokenizer carries it to every door."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import JsonValue

from subvene.specs import ModelSpec

CHAT_FIELDS = ("chat_template_kwargs", "system", "reasoning")
"""The fields of a `ModelSpec` that say how conversations are read."""
_CARRIED = "_subvene_chat"


@dataclass(frozen=True)
class ChatSettings:
    """How conversations are put into a chat template and read.

    Attributes:
        chat_template_kwargs: variables that the template is given.
        system: `role`: a system prompt is a message; `fold`: it stands before the first user's turn.
        reasoning: `drop`: a reply is what follows its block of reasoning; `keep`: the block is part of it.
    """

    chat_template_kwargs: Mapping[str, JsonValue] = field(default_factory=dict)
    system: Literal["role", "fold"] = "role"
    reasoning: Literal["drop", "keep"] = "drop"

    def with_variables(self, variables: Mapping[str, JsonValue] | None) -> ChatSettings:
        """The same with further variables of the template, which go before its own."""
        return replace(self, chat_template_kwargs={**self.chat_template_kwargs, **(variables or {})})

    def to_dict(self) -> dict[str, JsonValue]:
        """JSON values; only what is not the default."""
        default = ChatSettings()
        return {
            name: getattr(self, name) for name in CHAT_FIELDS if getattr(self, name) != getattr(default, name)
        }


def refuse_overrides(overrides: Mapping[str, object]) -> None:
    """A model that is loaded already stays as it is.

    Raises:
        ValueError: a field that is not about conversations.
    """
    if late := sorted(overrides.keys() - set(CHAT_FIELDS)):
        raise ValueError(
            f"{', '.join(late)}: the model that was passed is loaded already, and this would not change it; "
            "load it so, or leave `model=` out"
        )


def chat_of(tokenizer: Any) -> ChatSettings:
    """The settings that a tokenizer carries; the defaults where nobody gave it any."""
    settings: ChatSettings = getattr(tokenizer, _CARRIED, None) or ChatSettings()
    return settings


def with_chat(tokenizer: Any, spec: ModelSpec) -> Any:
    """The tokenizer with what a spec declares of conversations; the one that was given stays as it is.

    What the spec leaves out stays as the tokenizer has it: a model that was loaded by one spec is often used
    by others.
    """
    declared = {name: getattr(spec, name) for name in CHAT_FIELDS if name in spec.model_fields_set}
    declared = {name: value for name, value in declared.items() if value is not None}
    settings = replace(chat_of(tokenizer), **declared)
    if tokenizer is None or settings == chat_of(tokenizer):
        return tokenizer
    carrying = copy.copy(tokenizer)
    setattr(carrying, _CARRIED, settings)
    return carrying
