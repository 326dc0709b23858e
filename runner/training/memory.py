"""How many tokens a training pass takes: from the device's free memory, and half of it when that runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

from subvene.runner.models.devices import input_device

log = logging.getLogger(__name__)
Given = TypeVar("Given")

_ON_CPU, _MOST, _LEAST = 2048, 16384, 64
_FULL_ON_CPU, _FULL = 256, 4096
# What the backward pass keeps of a token in a block: 34 numbers of 2 bytes for every 2 of its width
# (Korthikanti et al. 2022, arXiv:2205.05198, equation 1, without attention's own); 132 KB at the width of
# Llama-2-7B in half precision were measured, and these are 139.
_BYTES_BY_WIDTH = 34 / 2
# Logits, their log-probabilities and the gradient of these, in float32.
_LOGITS = 3 * 4
_SHARE = 0.8


class Sized(Protocol):
    """Something that does its work in passes of so many tokens at most."""

    pass_tokens: int


def default_pass_tokens(model: Any) -> int:
    """Tokens of a pass that the memory which is free now has room for, forward and backward."""
    free = free_bytes(input_device(model))
    if free is None:
        return _ON_CPU
    config = model.config.get_text_config()
    each = config.num_hidden_layers * config.hidden_size * _BYTES_BY_WIDTH * model.dtype.itemsize
    each += config.vocab_size * _LOGITS
    return max(_LEAST, min(_MOST, int(_SHARE * free / each)))


def full_pass_tokens(model: Any) -> int:
    """With fewer tokens a pass is better filled than begun at the highest layer."""
    return _FULL_ON_CPU if input_device(model).type == "cpu" else _FULL


def free_bytes(device: torch.device) -> int | None:
    """Memory of an accelerator that is not in use; None of a CPU, and where its driver does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)


def halving(sized: Sized, work: Callable[[], Given]) -> Given:
    """Do the work; as often as memory runs out, again from its beginning with passes of half the tokens.

    Raises:
        RuntimeError: torch's own, where a pass of one token has no room either.
    """
    while True:
        try:
            return work()
        except RuntimeError as error:
            if not is_out_of_memory(error) or sized.pass_tokens <= 1:
                raise
        # Outside of the handler, whose error holds on to the tensors of the pass that failed.
        sized.pass_tokens //= 2
        log.warning("memory ran out: passes of %d tokens from here on", sized.pass_tokens)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
