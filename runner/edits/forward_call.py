"""What a forward call is given, as far as places and records need it: the one reading of its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

PACKED_KEYWORDS = ("cu_seq_lens_q", "cu_seq_lens_k", "block_table", "read_index", "write_index", "seq_idx")
# The names under which models take their cache.
_CACHES = ("past_key_values", "cache_params", "state")


@dataclass(frozen=True, eq=False)
class ForwardCall:
    """A call of a model.

    Attributes:
        input_ids: [batch, tokens]; None where there are none.
        inputs_embeds: [batch, tokens, width]; likewise.
        attention_mask: as it was given; None without one.
        position_ids: likewise.
        cache: under whichever name the model takes it; None without one.
        logits_to_keep: as it was given; None without it.
        given: the names of all arguments that are not None.
    """

    input_ids: torch.Tensor | None
    inputs_embeds: torch.Tensor | None
    attention_mask: Any
    position_ids: torch.Tensor | None
    cache: Any
    logits_to_keep: Any
    given: frozenset[str]

    @classmethod
    def of(cls, **given: Any) -> Self:
        """A call with these arguments."""
        names = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "logits_to_keep")
        return cls(
            **{name: given.get(name) for name in names},
            cache=next((given[name] for name in _CACHES if given.get(name) is not None), None),
            given=frozenset(name for name, value in given.items() if value is not None),
        )

    @classmethod
    def made(cls, model: torch.nn.Module, args: tuple[Any, ...], **kwargs: Any) -> Self:
        """A call of `model` as a hook sees it, some of its arguments by place."""
        if args:
            parameters = inspect.signature(model.forward).parameters
            kwargs = dict(zip(parameters, args, strict=False)) | kwargs
        return cls.of(**kwargs)

    @property
    def is_placed(self) -> bool:
        """Whether there are tokens or embeddings that could be placed."""
        return self.input_ids is not None or self.inputs_embeds is not None

    @property
    def inputs(self) -> torch.Tensor:
        """Token ids [batch, tokens], or embeddings [batch, tokens, width] where those are given.

        Raises:
            ValueError: there are neither.
        """
        inputs = self.input_ids if self.input_ids is not None else self.inputs_embeds
        if inputs is None:
            raise ValueError("a call with neither input_ids nor inputs_embeds")
        return inputs

    @property
    def held(self) -> int:
        """Tokens that the cache says it holds now."""
        return cached_length(self.cache)


def cache_in(output: Any) -> Any:
    """The cache that a forward call hands back; None without one."""
    if isinstance(output, Mapping):
        return next((output[name] for name in _CACHES if output.get(name) is not None), None)
    parts = output if isinstance(output, tuple | list) else ()
    return next((part for part in parts if hasattr(part, "get_seq_length")), None)


def cached_length(cache: Any) -> int:
    """Tokens that a cache says it holds; 0 without a cache, or where it cannot say."""
    if not hasattr(cache, "get_seq_length"):
        return 0
    try:
        return int(cache.get_seq_length())
    except ValueError:  # a cache of states alone knows no length
        return 0
