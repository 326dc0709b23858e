"""What a `generate` call starts from: its rows, with a mask that says which of their tokens are real."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from subvene.runner.edits.cache_record import refuse_unmasked
from subvene.runner.edits.forward_call import ForwardCall
from subvene.runner.edits.refusals import refuse_other_width, refuse_unmasked_padding
from subvene.runner.models.generation import Settings


def with_mask(base: Mapping[str, torch.Tensor], settings: Settings) -> dict[str, torch.Tensor]:
    """The inputs of a `generate` call with their mask; all tokens are real where none was given.

    In any case with one: without a mask transformers would guess padding from the token ids.

    Args:
        base: `input_ids` or `inputs_embeds`, perhaps an `attention_mask`.
        settings: of the call.

    Raises:
        PositionError: padding ids stand in rows without a mask, or the mask does not cover the tokens.
    """
    call = ForwardCall.of(**{"past_key_values": settings.given("past_key_values"), **base})
    inputs, mask = call.inputs, base.get("attention_mask")
    if mask is None:
        refuse_unmasked(call)
        refuse_unmasked_padding(inputs, settings["pad_token_id"])
        mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
    refuse_other_width(mask, inputs, settings)
    return {**base, "attention_mask": mask}
