"""The settings of a `generate` call as transformers will see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def setting(model: Any, kwargs: Mapping[str, Any], name: str) -> Any:
    """A generation setting: the keyword, else `generation_config`'s, else the model's own."""
    if name in kwargs:
        return kwargs[name]
    given = getattr(kwargs.get("generation_config"), name, None)
    return given if given is not None else getattr(model.generation_config, name, None)


def row_ends(model: Any, kwargs: Mapping[str, Any]) -> tuple[list[int], int | None]:
    """The ids that end a row, and the one that fills up a row which something else has ended."""
    ends = setting(model, kwargs, "eos_token_id")
    ends = [] if ends is None else torch.as_tensor(ends).reshape(-1).tolist()
    other = kwargs.get("stopping_criteria") or setting(model, kwargs, "stop_strings")
    # Without an end token transformers fills nothing up: finished rows are generated further.
    return ends, setting(model, kwargs, "pad_token_id") if other and ends else None
