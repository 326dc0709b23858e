"""What a `generate` call starts from: its rows, with a mask that says which of their tokens are real."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from subvene.runner.edits.cache_record import refuse_unmasked
from subvene.runner.edits.positions import inputs_of
from subvene.runner.edits.refusals import refuse_other_width, refuse_unmasked_padding
from subvene.runner.models.generation import setting


def with_mask(
    model: Any, base: Mapping[str, torch.Tensor], kwargs: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """The inputs of a `generate` call with their mask; all tokens are real where none was given.

    In any case with one: without a mask transformers would guess padding from the token ids.

    Args:
        model: the model that generates.
        base: `input_ids` or `inputs_embeds`, perhaps an `attention_mask`.
        kwargs: the settings of the call.

    Raises:
        PositionError: padding ids stand in rows without a mask, or the mask does not cover the tokens.
    """
    inputs, mask = inputs_of(base), base.get("attention_mask")
    if mask is None:
        refuse_unmasked({**kwargs, **base})
        refuse_unmasked_padding(inputs, setting(model, kwargs, "pad_token_id"))
        mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
    refuse_other_width(mask, inputs, kwargs)
    return {**base, "attention_mask": mask}
