"""How many tokens a model can read, and texts that are longer.

What is beyond a model's context is either cut away or read where the model has never been: a number from it
is not what was asked for. So it is refused, with the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from subvene.runner.data.text import TextError
from subvene.runner.models.anatomy import text_config
from subvene.runner.models.generation import Settings


class TooLongError(TextError):
    """A text has more tokens than are read of it."""


def context_length(model: Any) -> int | None:
    """How many tokens a model reads, prompt and answer together; None if its config does not say."""
    config = text_config(model.config)
    longest = getattr(config, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 1:
        return None
    return max(longest, *_stretched(getattr(config, "rope_parameters", None)), 0)


def refuse_beyond_context(
    model: Any, lengths: Iterable[int], what: str | Callable[[int], str], *, new: int = 0
) -> None:
    """Refuse texts that a model cannot read whole.

    Args:
        model: the model.
        lengths: tokens of each text.
        what: what the texts are called, `prompt`; or the i-th text's name.
        new: tokens that are to be generated after each.

    Raises:
        TooLongError: naming the first such text, its length and the model's.
    """
    longest = context_length(model)
    if longest is None:
        return
    for i, length in enumerate(lengths):
        if length + new > longest:
            name = f"{what} {i}" if isinstance(what, str) else what(i)
            more = f" and {new} are to follow" if new else ""
            advice = "shorten it, or lower max_new_tokens" if new else "shorten it, or leave it out"
            raise TooLongError(
                f"{name} has {length} tokens{more}, and this model reads at most {longest}; {advice}"
            )


def refuse_batch_beyond_context(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, *, before: int = 0, new: int = 0
) -> None:
    """As `refuse_beyond_context`, for a padded batch [rows, slots] that continues `before` cached slots."""
    longest, slots = context_length(model), before + input_ids.shape[1]
    if longest is None or slots + new <= longest:
        return
    # Padding is no token; only now is it worth asking the device how much of it there is.
    is_whole = attention_mask is not None and attention_mask.ndim == 2 and attention_mask.shape[1] == slots
    lengths = attention_mask.sum(1).tolist() if is_whole else [slots] * len(input_ids)  # type: ignore[union-attr]
    refuse_beyond_context(model, lengths, "row", new=new)


def refuse_generation_beyond_context(base: Mapping[str, torch.Tensor], settings: Settings) -> None:
    """As `refuse_batch_beyond_context`, for a `generate` of this batch with these keywords."""
    ids = base.get("input_ids")
    if ids is None:
        return
    new = settings["max_new_tokens"] or 0
    if not new and (longest := settings.given("max_length")):
        new = max(int(longest) - ids.shape[1], 0)
    refuse_batch_beyond_context(settings.model, ids, base.get("attention_mask"), new=new)


def _stretched(rope: Any) -> list[int]:
    """The lengths that scaled rotary embeddings reach, where a config gives the length before scaling."""
    if not isinstance(rope, Mapping):
        return []
    if "rope_type" not in rope:  # one for each kind of layer
        return [length for part in rope.values() for length in _stretched(part)]
    before, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    return [int(before * factor)] if before and factor else []
